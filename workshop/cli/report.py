"""The weekly report: of one week, or of many."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from workshop.cli.printing import json_option, tell


@click.command()
@click.option("--week", metavar="NAME", help="`latest`, or one like 2016-W40; by default what params.yaml says.")
@click.option("--weeks", metavar="FROM..TO", help="All weeks from the first to the last of two.")
@click.option("--all", "every", is_flag=True, help="All weeks of the data.")
@click.option(
    "--to", "folder", type=click.Path(file_okay=False, path_type=Path), help="The folder; by default results/reports."
)
@click.option("--pdf/--no-pdf", "to_paper", default=True, help="Print it, too, if Chromium is on the machine.")
@json_option
def report(
    week: str | None, weeks: str | None, every: bool, folder: Path | None, to_paper: bool, as_json: bool
) -> None:
    """Write the report on a week as HTML, and as PDF where there is a browser to print it.

    Many weeks are made side by side on the cluster; one that fails stops no other, and the exit code is then 1.

    \b
    Example:  workshop report --week 2016-W40
              workshop report --weeks 2016-W38..2016-W41
    """
    from workshop.settings import get_settings

    if sum((week is not None, weeks is not None, every)) > 1:
        raise click.UsageError("Only one of --week, --weeks and --all can be given.")
    pipeline = get_settings().pipeline
    folder = folder or pipeline / "results" / "reports"
    many = weeks is not None or every
    done = _many(pipeline, weeks, folder, to_paper) if many else [_one(pipeline, week, folder, to_paper)]
    failed = [made for made in done if made.error]
    if as_json:
        click.echo(json.dumps([made.as_dict() for made in done], indent=2))
    elif len(done) == 1:
        for file in done[0].files:
            click.echo(file)
    else:
        click.echo(f"{len(done) - len(failed)} of {len(done)} weeks in {folder}")
    for made in failed:
        tell(f"{made.week}: {made.error}")
    unprinted = [made.week for made in done if not made.printed and not made.error]
    if to_paper and unprinted:
        which = "No PDF" if len(done) == 1 else f"No PDF of {len(unprinted)} weeks"
        tell(f"{which}: no Chromium to print it where the page was made. Any browser prints the HTML file.")
    raise SystemExit(1 if failed else 0)


def _one(pipeline: Path, week: str | None, folder: Path, to_paper: bool):
    """Make the report of one week here."""
    from workshop.data.weeks import select_week
    from workshop.models.report import batch
    from workshop.parameters import read_stage

    if week is None:
        week = read_stage(pipeline / "params.yaml", "report").week
    frame = _frame(pipeline)
    week, _ = select_week(frame, week)  # a mistake in it is told before the model is loaded
    return batch.write(batch.make(_evidence(frame), week, _template(pipeline), to_paper=to_paper), folder)


def _many(pipeline: Path, weeks: str | None, folder: Path, to_paper: bool) -> list:
    """Make the reports of many weeks on the cluster, with a bar on a terminal."""
    from tqdm.auto import tqdm

    from workshop.data.weeks import between, names
    from workshop.ownership import use_own_servers

    use_own_servers()
    from workshop.models.report import batch

    wanted = None if weeks is None else between(weeks)
    frame = _frame(pipeline)
    wanted = wanted or names(frame)
    making = batch.make_many(_evidence(frame), wanted, _template(pipeline), folder, to_paper=to_paper)
    done = list(tqdm(making, total=len(wanted), desc="reports", unit="week", file=sys.stderr, disable=None))
    return sorted(done, key=lambda made: made.week)


def _frame(pipeline: Path):
    """Return the processed table."""
    from workshop.data import schema
    from workshop.errors import DataError

    file = pipeline / "data" / "germany.parquet"
    if not file.exists():
        raise DataError(
            "There is no data to report on.",
            value=f"no file {file}",
            expected="the table that the pipeline's stage `prepare` writes",
            next_step="workshop start (or, with the servers up, workshop repro)",
        )
    return schema.read(file)


def _evidence(frame):
    from workshop.models import registry
    from workshop.models.report.evidence import gather

    return gather(frame, registry.production())


def _template(pipeline: Path) -> str:
    from workshop.errors import DataError

    file = pipeline / "notebooks" / "report.html.jinja"
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            "The template of the report cannot be read.",
            value=f"{file}: {error.strerror}",
            next_step="git checkout 4_pipeline/notebooks/report.html.jinja",
        ) from None
