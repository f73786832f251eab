"""The data: raw, or processed."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from workshop.cli.printing import json_option, print_rows


@click.group()
def data() -> None:
    """Get the data, raw files or the processed table, and look at it.

    \b
    Example:  workshop data csv germany.csv
    """


@data.command()
@click.option("--source", default=None, help="sample, opsd or csv; by default what params.yaml says.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder.")
@click.option("--mirror", default=None, help="For opsd: a folder, or an address, that holds copies of its files.")
def fetch(source: str | None, folder: Path, mirror: str | None) -> None:
    """Put the raw files of a source into a folder, checksummed, with their attribution.

    What else params.yaml says of fetching (addresses, mirror, a file of your own) counts for --source too. Downloads
    are kept: the second time needs no network.

    \b
    Example:  workshop data fetch --to raw_data
              workshop data fetch --source opsd --mirror /media/stick --to raw_data
    """
    from workshop.data import sources
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    base = get_settings().pipeline
    options = read_stage(base / "params.yaml", "fetch") if source != "sample" else None
    source = source or options.source
    if mirror is not None and options is not None:
        here = mirror if "://" in mirror else str(Path(mirror).resolve())
        options = options.model_copy(update={"mirror": here})
    files = sources.fetch(source, folder, options, base=base, progress=sys.stderr.isatty())
    for file in files:
        click.echo(file)
    click.echo(sources.attribution(source, options), err=True)


@data.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write a page (HTML).")
@json_option
def check(folder: Path, report: Path | None, as_json: bool) -> None:
    """Look at the raw files in FOLDER: what would be left out and why, and what is unusual.

    Prints the warnings (with --json all checks, with their limits), of the years in params.yaml. Data that is broken is
    an error; data that is only unusual is not.

    \b
    Example:  workshop data check 4_pipeline/data/raw --report validation.html
    """
    from workshop.data import prepare, sources, validation, validation_page
    from workshop.data.files import write_whole
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    years = read_stage(get_settings().pipeline / "params.yaml", "prepare")
    _hear()
    frame, findings = prepare.prepare(folder, years.first_year, years.last_year)
    found = validation.validate(frame, findings | {"changed": sources.changed(folder)})
    if report is not None:
        write_whole(report, validation_page.render(frame, found).encode())
    if as_json:
        print_rows([check.as_dict() for check in found.checks], as_json)
        return
    print_rows([check.as_row() for check in found.warnings], as_json)
    click.echo(f"{len(found.warnings)} of {len(found.checks)} checks warn", err=True)


@data.command("csv")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make_csv(file: Path) -> None:
    """Write the processed hours of the embedded sample to FILE, unless it is there already.

    \b
    Example:  workshop data csv 3_projects/germany.csv
    """
    from workshop.data.prepare import load_or_make

    _hear()
    frame = load_or_make(file)
    click.echo(f"{file}: {len(frame)} hours")


def _hear() -> None:
    """Let people see on standard error what was left out of the data, and why: that is what its log says."""
    logger = logging.getLogger("workshop.data")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
