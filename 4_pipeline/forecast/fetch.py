"""The command of the stage `fetch`, apart from the others, since it imports less: `python -m forecast.fetch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from forecast.terms.errors import ParameterError
from forecast.terms.parameters import FILE, project, read_stage


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forecast")
@click.option("--source", type=click.Choice(["sample", "opsd", "csv"]), help="By default the one in params.yaml.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder.")
@click.option("--downloads", type=click.Path(path_type=Path), envvar="FETCH_DOWNLOADS", help="The cache.")
def fetch(source: str | None, folder: Path, downloads: Path | None) -> None:
    """Put the raw files of a source into a folder, checksummed, with their attribution.

    A file of your own is read as the section `fetch` of params.yaml says. Downloads are kept: the second time needs no
    network.

    \b
    Example:  python -m forecast fetch --source opsd --to raw_data
    """
    from forecast.raw import sources  # imports pandas
    from forecast.terms.origin import origin_in

    base = project()
    options: Any = None if source == "sample" else read_stage(base / FILE, "fetch")
    own = (base / "own").resolve()
    if options and options.source == "csv" and own not in (base / options.csv.file).absolute().parents:
        raise ParameterError(
            f"{FILE}: fetch.csv.file is outside own/, where a change of it would go unnoticed.",
            value=options.csv.file,
            expected="a file in own/, on which dvc.yaml lets the stage depend; a symbolic link will do",
            next_step=f"ln -s {base / options.csv.file} {own}, and name that",
        )
    where: Any = {"base": base, "downloads": downloads, "progress": sys.stderr.isatty()}
    files = sources.fetch(source or options.source, folder, options, **where)
    for file in files:
        click.echo(file)
    click.echo(origin_in(folder).attribution, err=True)


if __name__ == "__main__":
    fetch(prog_name="python -m forecast.fetch")
