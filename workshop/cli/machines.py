"""The machines: what is the matter with one, and what others need that have no network."""

from __future__ import annotations

from pathlib import Path

import click

from workshop.cli.printing import json_option, print_rows, tell

SIGNS = {"ok": "ok ", "look": "?  ", "wrong": "!! "}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is the matter with this machine and what to type; exit 1 when something will fail.

    `ok` is well, `?` works yet may surprise, `!!` will fail.

    \b
    Example:  workshop doctor
    """
    from workshop.settings import get_settings
    from workshop.teaching.doctor import examine

    findings = examine(get_settings())
    if as_json:
        print_rows([finding.as_dict() for finding in findings], as_json)
    else:
        for finding in findings:
            click.echo(f"{SIGNS[finding.verdict]} {finding.check}: {finding.found}")
            if finding.next_step:
                click.echo(f"    next: {finding.next_step}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def offline(folder: Path) -> None:
    """Bring into FOLDER what machines without a network need: all packages, and this repository.

    It is for machines like this one: the same system, the same Python. An interrupted call goes on where it was.

    \b
    Example:  workshop offline /media/stick/workshop
    """
    from workshop.settings import get_settings
    from workshop.teaching.offline import make

    made = make(folder, get_settings().root, lambda done, total: tell(f"{done} of {total} packages"), tell)
    tell(f"{made.packages} packages, {made.fetched} of them new, and commit {made.commit}: {made.size / 1e9:.2f} GB")
    tell(f"next: copy it to the other machine, and there: make run OFFLINE={folder}; more in {folder / 'README.md'}")
    click.echo(folder)
