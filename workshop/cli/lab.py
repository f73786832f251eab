"""JupyterLab, opened at the start page."""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def lab(options: tuple[str, ...]) -> None:
    """Start the servers that do not run, then JupyterLab at the start page; OPTIONS go to `jupyter lab`.

    \b
    Example:  workshop lab --no-browser
    """
    raise NotImplementedError
