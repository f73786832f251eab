"""The data: raw, or processed."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group()
def data() -> None:
    """Get the data: raw files, or the processed table.

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
