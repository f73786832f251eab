"""JupyterLab, opened at the start page."""

from __future__ import annotations

import click

from workshop.cli.printing import tell


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def lab(options: tuple[str, ...]) -> None:
    """Start the servers that do not run, then JupyterLab at the start page; OPTIONS go to `jupyter lab`.

    \b
    Example:  workshop lab --no-browser
    """
    import os
    import sys

    from workshop.servers import supervision
    from workshop.servers.services import program

    settings = supervision.up(tell)
    tell("JupyterLab: Ctrl-C ends it alone; the servers go on until `workshop down`")
    configuration = str(settings.root / "server" / "jupyter")
    others = os.environ.get("JUPYTER_CONFIG_PATH")
    environment = os.environ | {
        "JUPYTER_CONFIG_PATH": os.pathsep.join([configuration, others] if others else [configuration])
    }
    sys.stdout.flush()
    os.execve(program("jupyter-lab"), ["jupyter-lab", "--ip=127.0.0.1", *options], environment)  # noqa: S606
