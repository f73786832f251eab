"""Commands for data: raw files, or the processed table."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from workshop.data import sources
from workshop.data.prepare import load_or_make
from workshop.parameters import read_stage
from workshop.settings import get_settings


@click.group()
def data() -> None:
    """Get the data, raw files or the processed table, and look at it.

    \b
    Example:  workshop data csv germany.csv
    """


@data.command()
@click.option("--source", type=click.Choice(["sample", "opsd", "csv"]), help="By default the one in params.yaml.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder.")
def fetch(source: str | None, folder: Path) -> None:
    """Put the raw files of a source into a folder, checksummed, with their attribution.

    A file of your own is read as the section `fetch` of params.yaml says. Downloads are kept: the second time needs no
    network.

    \b
    Example:  workshop data fetch --to raw_data
              workshop data fetch --source opsd --to raw_data
    """
    base = get_settings().pipeline
    options: Any = None if source == "sample" else read_stage(base / "params.yaml", "fetch")
    files = sources.fetch(source or options.source, folder, options, base=base, progress=sys.stderr.isatty())
    for file in files:
        click.echo(file)
    click.echo(sources.origin_in(folder).attribution, err=True)


@data.command("csv")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make_csv(file: Path) -> None:
    """Write the processed hours of the embedded sample to FILE, unless the file is there already.

    \b
    Example:  workshop data csv 3_projects/germany.csv
    """
    _show_log()
    click.echo(f"{file}: {len(load_or_make(file))} hours")


def _show_log() -> None:
    """Print the log of `workshop.data`, which says what was left out and why, on standard error."""
    logger = logging.getLogger("workshop.data")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
