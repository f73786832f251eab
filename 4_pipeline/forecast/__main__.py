"""The pipeline's command-line interface, for example `python -m forecast fetch`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import click

from forecast.fetch import fetch
from forecast.terms.parameters import FILE, allowed, project, read, read_stage, trainings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="forecast")
def main() -> None:
    """Commands for the stages of dvc.yaml and for manual use.

    \b
    Example:  python -m forecast params
    """


main.add_command(fetch)


@main.command()
@click.argument("stage", required=False)
def params(stage: str | None) -> None:
    """Validate params.yaml, or only one STAGE's section, and print the values with their allowed ranges.

    \b
    Example:  python -m forecast params train_rf
    """
    file = project() / FILE
    checked = {stage: read_stage(file, stage)} if stage else read(file)
    rows = [
        {"parameter": f"{name}.{key}", "value": value, "allowed": allowed(type(section), key)}
        for name, section in checked.items()
        for key, value in section.model_dump().items()
    ]
    from tabulate import tabulate

    widest = max(20, shutil.get_terminal_size().columns // 2)
    cells = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    click.echo(tabulate(cells, headers="keys", tablefmt="simple", maxcolwidths=widest))


@main.command()
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Output folder.")
def state(folder: Path) -> None:
    """Validate params.yaml, record the tracking store's id and moves of the alias, and delete outdated summaries.

    If the tracking store was wiped, the stages that log to it run again. The summary of a removed training stage is
    deleted, because DVC keeps this file and `compare` would read it.

    \b
    Example:  python -m forecast state --to data
    """
    from forecast import tracking
    from forecast.govern.state import is_unchanged, write_state

    read(project() / FILE)  # in the first stage, so that invalid parameters fail early
    if tracking.tracking_uri().startswith("sqlite:"):
        click.echo(tracking.NO_SERVER, err=True)
    known = trainings(project())
    for summary in (project() / "results" / "trained").glob("*.json"):
        if summary.stem not in known:
            summary.unlink()
    decision = project() / "results" / "decision.json"
    if not is_unchanged(folder, decision):
        write_state(folder, decision)


@main.command()
@click.option("--older-than", "days", type=click.IntRange(min=0), default=30, show_default=True, help="Age in days.")
@click.option("--dry-run", is_flag=True, help="List the runs without deleting them.")
def tidy(days: int, dry_run: bool) -> None:
    """Mark runs and models as deleted if neither the registry nor this folder's results use them; see take_it_home.md.

    \b
    Example:  python -m forecast tidy --older-than 90 --dry-run
    """
    from forecast.govern.tidy import unreferenced_runs
    from forecast.tracking import connect

    client, runs = connect(), unreferenced_runs(days, project() / "results")
    for run in runs:
        click.echo(f"{run.info.run_id}  {run.info.run_name}")
        if not dry_run:
            for model in run.outputs.model_outputs:  # type: ignore[union-attr] # runs from a server have outputs
                client.delete_logged_model(model.model_id)
            client.delete_run(run.info.run_id)
    click.echo(f"{len(runs)} runs {'would be' if dry_run else 'were'} marked as deleted. To free disk space:", err=True)
    gc = "mlflow gc --backend-store-uri DATABASE --tracking-uri ADDRESS  # see take_it_home.md for both values"
    click.echo(f"{gc}\ndvc gc --workspace --all-commits", err=True)


@main.command("csv")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make_csv(file: Path) -> None:
    """Write the processed table of the built-in sample to FILE, unless FILE exists.

    \b
    Example:  python -m forecast csv germany.csv
    """
    from forecast.raw.prepare import load_or_make  # imports pandas

    logger = logging.getLogger("forecast.raw")  # logs the counts of dropped rows
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    click.echo(f"{file}: {len(load_or_make(file))} hours")


if __name__ == "__main__":
    main(prog_name="python -m forecast")
