"""How the commands answer: lines on standard error, tables or JSON on standard output."""

from __future__ import annotations

import json

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def tell(line: str) -> None:
    """Report progress on standard error."""
    click.echo(f"  {line}", err=True)


def one_line(text: str, longest: int | None = None) -> str:
    """Return a text as one line without control characters, cut to ``longest`` characters."""
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
