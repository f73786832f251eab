"""JupyterLab, opened at the start page."""

from __future__ import annotations

import click

from workshop.cli.printing import tell


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--port", type=click.IntRange(1, 65535), default=8888, help="The port, or the first free one above it.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def lab(port: int, options: tuple[str, ...]) -> None:
    """Start the servers that do not run, then JupyterLab at the start page; OPTIONS go to `jupyter lab`.

    \b
    Example:  workshop lab --no-browser
    """
    import os

    from workshop.servers import ports, supervision
    from workshop.servers.services import program
    from workshop.teaching import startpage

    settings = supervision.up(tell)
    startpage.write(settings)
    tell("JupyterLab starts; Ctrl-C ends it alone, and the servers go on until `workshop down`")
    folders = [str(settings.jupyter), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    port = ports.first_free("127.0.0.1", port)
    os.execve(  # noqa: S606
        program("jupyter-lab"),
        [
            "jupyter-lab",
            *("--ip=127.0.0.1", f"--port={port}", "--port-retries=0"),
            # Dask's panel remembers its address together with the open tabs: on another port it is another address.
            f"--LabApp.workspaces_dir={settings.state / 'jupyter' / str(port)}",
            *options,
        ],
        os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, folders))},
    )
