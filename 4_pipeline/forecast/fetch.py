"""The command of the `fetch` stage, `python -m forecast.fetch`; pandas is imported only when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from forecast.terms.errors import ParameterError
from forecast.terms.parameters import FILE, project, read_stage


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forecast")
@click.option("--source", type=click.Choice(["sample", "opsd", "csv"]), help="Default: the source in params.yaml.")
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Output folder.")
@click.option("--downloads", type=click.Path(path_type=Path), envvar="FETCH_DOWNLOADS", help="Cache folder.")
def fetch(source: str | None, folder: Path, downloads: Path | None) -> None:
    """Write the raw files of a source into a folder, with checksums and attribution.

    The `fetch` section of params.yaml describes your own file. Downloads are cached: the next fetch needs no network.

    \b
    Example:  python -m forecast fetch --source opsd --to raw_data
    """
    from forecast.raw import sources  # imports pandas
    from forecast.terms.origin import origin_in

    base = project()
    options: Any = None if source == "sample" else read_stage(base / FILE, "fetch")
    own_folder = (base / "own").resolve()
    if options and options.source == "csv" and own_folder not in (base / options.csv.file).absolute().parents:
        raise ParameterError(
            f"{FILE}: fetch.csv.file must be in own/, the folder that DVC checks for changes.",
            value=options.csv.file,
            expected="a file in own/, which is a dependency of the stage in dvc.yaml; a symbolic link is enough",
            next_step=f"ln -s {base / options.csv.file} {own_folder}, and set fetch.csv.file to the link",
        )
    settings: Any = {"base": base, "downloads": downloads, "progress": sys.stderr.isatty()}
    files = sources.fetch(source or options.source, folder, options, **settings)
    for file in files:
        click.echo(file)
    click.echo(origin_in(folder).attribution, err=True)


if __name__ == "__main__":
    fetch(prog_name="python -m forecast.fetch")
