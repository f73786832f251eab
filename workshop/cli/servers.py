"""The servers: started, stopped, looked at."""

from __future__ import annotations

import contextlib
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import click

from workshop.cli.printing import bytes_bar, json_option, print_rows, tell


@click.command()
@click.option("--chapter", type=click.IntRange(2, 4), help="Also make what the chapters before this one leave.")
def up(chapter: int | None) -> None:
    """Start the servers that do not run, and wait until each answers.

    With --chapter, prepare the state that the earlier chapters would have left: tables, runs, a registered version, a
    project's run. What exists is not made again, and no file of yours is changed.

    \b
    Example:  workshop up
              workshop up --chapter 3
    """
    from workshop.servers import supervision

    settings = supervision.up(tell)
    if chapter:
        from workshop.teaching import headstart, startpage

        headstart.bring(settings, chapter, tell)
        tell(f"next: {startpage.write(settings)} shows the next step")


@click.command()
@click.argument("services", nargs=-1)
def down(services: tuple[str, ...]) -> None:
    """Stop the servers and all they started; only the SERVICES that are named, if any.

    SERVICES are names of `workshop status`. What a person started by hand goes on.

    \b
    Example:  workshop down
              workshop down ftp mlflow
    """
    from workshop.servers import supervision

    ended = supervision.stop(services, tell) if services else supervision.down(tell)
    tell(f"stopped, {ended} processes ended" if ended else "nothing had to be stopped")


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show what runs: the servers, and the notebooks on the cluster, at which cell and since when.

    \b
    Example:  workshop status --json
    """
    from workshop.servers import supervision

    services = [row.as_dict() for row in supervision.status()]
    notebooks = _running_notebooks(services)
    if as_json:
        click.echo(json.dumps({"services": services, "notebooks": notebooks}, indent=2))
        return
    print_rows([{name: row[name] for name in row if name != "reason"} for row in services], as_json)
    click.echo("".join(f"\n{row['name']}: {row['reason']}\n" for row in services if row["reason"]), nl=False)
    if notebooks:
        click.echo()
        print_rows([{**row, "since": _in_words(row["since"])} for row in notebooks], as_json)


def _in_words(seconds: float) -> str:
    """Return a moment, in seconds since 1970, as `history` writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _running_notebooks(services: list[dict]) -> list[dict]:
    """Ask the cluster, unless it is this machine's own and does not run."""
    from workshop.ownership import use_own_servers
    from workshop.settings import get_settings

    own = next(service for service in services if service["name"] == "dask-scheduler")
    if get_settings().given_scheduler_address is None and not own["healthy"]:
        return []
    use_own_servers()
    from papermill_dask import EngineError, connect, running

    with contextlib.suppress(EngineError), connect() as client:  # raised while there is no worker
        return running(client)
    return []


@click.command()
@click.option("--export", is_flag=True, help="Print shell lines that set the addresses and PATH.")
@json_option
def config(export: bool, as_json: bool) -> None:
    """Show where things are; with --export, for the shell to read.

    \b
    Example:  eval "$(workshop config --export)"
    """
    from workshop.settings import get_settings

    settings = get_settings()
    if export:
        import sys

        from workshop.servers import ports

        for name, value in ports.hand_out(settings, tell).exports().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        click.echo(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}":$PATH"')
        return
    values = settings.exports() | {"root": str(settings.root), "state": str(settings.state)}
    print_rows([{"name": name, "value": value} for name, value in values.items()], as_json)


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
def backup(file: Path | None) -> None:
    """Write database and artifacts to FILE, while the servers run; its name is printed.

    Without FILE it is `workshop-backup-<time in UTC>.tar` in the current folder. No file is overwritten.

    \b
    Example:  workshop backup before-the-upgrade.tar
    """
    from workshop.servers.backup import back_up
    from workshop.settings import get_settings

    _end_in_order()
    file = file or Path(f"workshop-backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar")
    with bytes_bar("backing up") as progress:
        manifest = back_up(file, get_settings(), tell, progress)
    tell(f"{len(manifest.files)} files, {manifest.size / 1e6:.1f} MB, as of {manifest.made:%Y-%m-%d %H:%M:%S} UTC")
    click.echo(file)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def restore(file: Path) -> None:
    """Put what the backup FILE holds into an empty state folder, every file compared.

    \b
    Example:  workshop restore before-the-upgrade.tar
    """
    from workshop.servers.restore import restore as put_back
    from workshop.settings import get_settings

    _end_in_order()
    settings = get_settings()
    with bytes_bar("restoring") as progress:
        manifest = put_back(file, settings, progress)
    made = f"{manifest.made:%Y-%m-%d %H:%M:%S} UTC"
    tell(f"{len(manifest.files)} files, {manifest.size / 1e6:.1f} MB, as of {made}, are in {settings.state}")
    tell("next: workshop up")


def _end_in_order() -> None:
    """Clear away what is half done when terminated, as Ctrl-C does."""
    import signal
    import sys

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
