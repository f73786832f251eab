"""Server commands: start, stop, show and back up the servers, and start JupyterLab."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from workshop import port_owners
from workshop.cli import json_option, print_rows, report
from workshop.exports import exports_of
from workshop.servers import supervisor
from workshop.servers.services import is_free, program
from workshop.settings import Settings, get_settings
from workshop.tracking import connect


@click.command()
@click.argument("services", nargs=-1)
@click.option("--chapter", type=click.Choice("234"), help="Also create the missing results of earlier chapters.")
@click.option("--repro", is_flag=True, help="Also run the pipeline, and show the model in production.")
def up(services: tuple[str, ...], chapter: str | None, repro: bool) -> None:
    """Start the servers that are down, or only the named SERVICES, and wait until each one responds.

    With --chapter, also create the missing results of earlier chapters: tables, runs, a registered version and a
    project run. Your own files are not changed.

    \b
    Example:  workshop up
              workshop up mlflow ftp
              workshop up --chapter 3
    """
    if repro:
        click.echo("Servers", err=True)
    settings = _start(() if repro or chapter else services)
    if repro:
        from workshop.cli.pipeline import run_and_show  # imports DVC

        run_and_show(settings)
    if chapter:
        from workshop.teaching import chapter_files, checkpoints, start_page  # imports pandas

        checkpoints.save_first_chapter(settings, int(chapter))
        chapter_files.prepare_for(settings, int(chapter), report)
        report(f"next: open {start_page.write(settings)}, which shows the next step")


def _start(services: Sequence[str] = ()) -> Settings:
    """Start all servers or the named ones, report other users who can reach them, and return the settings."""
    settings = supervisor.up(report, services)
    if other_users := port_owners.describe_other_users(settings):
        report(other_users)
    return settings


@click.command()
@click.argument("services", nargs=-1)
def down(services: tuple[str, ...]) -> None:
    """Stop the servers, or only the named SERVICES, and their child processes.

    SERVICES are names from `workshop status`. Servers that you started by hand keep running.

    \b
    Example:  workshop down
              workshop down ftp mlflow
    """
    process_count = supervisor.down(report, services)
    report(f"stopped {process_count} processes" if process_count else "no server was running")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show the servers, and the notebooks running on the cluster with their current cell and start time.

    \b
    Example:  workshop status --json
    """
    settings = get_settings()
    services = [asdict(row) for row in supervisor.status(settings)]
    notebooks = _running_notebooks(services, settings)
    if as_json:
        click.echo(json.dumps({"services": services, "notebooks": notebooks}, indent=2))
        return
    print_rows([{name: row[name] for name in ("name", "address", "pid", "state")} for row in services], as_json)
    click.echo("".join(f"\n{row['name']}: {row['reason']}\n" for row in services if row["reason"]), nl=False)
    if any(row["name"] == "mlflow" and row["healthy"] for row in services):
        from forecast.govern.gate import Registry  # imports pandas

        click.echo(f"\n{Registry(connect()).status()}")
    if notebooks:
        click.echo()
        for row in notebooks:
            row["since"] = datetime.fromtimestamp(row["since"], UTC).isoformat(timespec="seconds")
        print_rows(notebooks, as_json)


def _running_notebooks(services: list[dict], settings: Settings) -> list[dict]:
    """Return the notebooks that run on the cluster, or [] if this clone's own cluster is down."""
    scheduler = next(service for service in services if service["name"] == "dask-scheduler")
    if settings.explicit_scheduler_address is None and not scheduler["healthy"]:
        return []
    import dask  # imported here because dask and distributed take 0.5 s to import
    from papermill_dask import EngineError, connect, running

    variables = {name: value for name, value in exports_of(settings).items() if name.startswith("DASK_")}
    with (
        dask.config.set({name[5:].lower().replace("__", "."): value for name, value in variables.items()}),
        contextlib.suppress(EngineError),  # raised while the cluster has no workers
        connect() as client,
    ):
        return running(client)
    return []


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--port", type=click.IntRange(1, 65535), default=8888, help="Port to use; if taken, the next free one.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def lab(port: int, options: tuple[str, ...]) -> None:
    """Start the servers that are down, and open JupyterLab at the start page; OPTIONS are passed to `jupyter lab`.

    \b
    Example:  workshop lab --no-browser
    """
    from workshop.teaching import start_page  # imports pandas

    settings = _start()
    start_page.write(settings)
    report("starting JupyterLab; Ctrl-C stops only JupyterLab, `workshop down` stops the servers")
    port = next(free for free in range(port, 65536) if is_free("127.0.0.1", free))
    folders = [str(settings.jupyter), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    arguments = [
        "jupyter-lab",
        *("--ip=127.0.0.1", f"--port={port}", "--port-retries=0"),
        # One workspace folder per port: a workspace saves the URL of Dask's panel, which contains JupyterLab's port.
        f"--LabApp.workspaces_dir={settings.state / 'jupyter' / str(port)}",
        *options,
    ]
    environment = os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, folders))}
    # A script's background jobs ignore SIGINT; JupyterLab's terminals would inherit this, and Ctrl-C would not work.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execve(program("jupyter-lab"), arguments, environment)  # noqa: S606


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--restore", is_flag=True, help="Verify FILE, and restore it into an empty state folder.")
def backup(file: Path | None, restore: bool) -> None:
    """Back up the database and the artifacts to FILE while the servers run, or restore them; print the file name.

    FILE defaults to `workshop-backup-<UTC time>.tar` in the current folder and is never overwritten. An SQLite backup
    can also be restored into an empty PostgreSQL database (WORKSHOP_DATABASE_URI) with the same version of MLflow.

    \b
    Example:  workshop backup before-the-upgrade.tar
              WORKSHOP_STATE=/srv/workshop workshop backup --restore before-the-upgrade.tar
    """
    from workshop.servers import backup as backups  # imports pooch

    settings = get_settings()
    if restore:
        if file is None or not file.exists():
            raise click.BadParameter(f"--restore needs an existing backup file, not {file}", param_hint="FILE")
        files = backups.restore(file, settings)
        report(f"restored {len(files)} files into {settings.state}; next: workshop up")
    else:
        file = file or Path(f"workshop-backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar")
        files = backups.back_up(file, settings)
        report(f"saved {len(files)} files")
    click.echo(file)
