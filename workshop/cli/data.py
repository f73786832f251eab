"""The data: raw, or processed."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Get the data: raw files, or the processed table.

    \b
    Example:  workshop data csv germany.csv
    """


@data.command()
@click.option("--source", default=None, help="Where from; by default what params.yaml says.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder.")
def fetch(source: str | None, folder: Path) -> None:
    """Put the raw files of a source into a folder, checksummed, with their attribution.

    \b
    Example:  workshop data fetch --to raw_data
    """
    from workshop.data import sources
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    source = source or read_stage(get_settings().pipeline / "params.yaml", "fetch").source
    for file in sources.fetch(source, folder):
        click.echo(file)
    click.echo(sources.attribution(source), err=True)


@data.command("csv")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def make_csv(file: Path) -> None:
    """Write the processed hours of the embedded sample to FILE, unless it is there already.

    \b
    Example:  workshop data csv 3_projects/germany.csv
    """
    from workshop.data.prepare import load_or_make

    frame = load_or_make(file)
    click.echo(f"{file}: {len(frame)} hours")
