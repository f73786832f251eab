"""How the commands answer: lines on standard error, tables or JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def tell(line: str) -> None:
    """Say what goes on."""
    click.echo(f"  {line}", err=True)


@contextlib.contextmanager
def bytes_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows how many bytes are done, of how many: a bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(f"  {title}", *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def one_line(text: str, longest: int | None = None) -> str:
    """Return a text that anybody may have written as a line without control characters, cut when it is longer."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if longest is None or len(line) <= longest else line[: longest - 3] + "..."


def print_rows(rows: list[dict], as_json: bool, widest: int | list[int | None] | None = None) -> None:
    """Print rows of the same columns; wrap texts of more than ``widest`` characters (a list: by column)."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    shown = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    click.echo(tabulate(shown, headers="keys", tablefmt="simple", maxcolwidths=widest))
