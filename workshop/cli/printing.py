"""How the commands answer: lines on standard error, tables or JSON on standard output."""

from __future__ import annotations

import json

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def tell(line: str) -> None:
    """Say what goes on."""
    click.echo(f"  {line}", err=True)


def print_rows(rows: list[dict], as_json: bool) -> None:
    """Print rows of the same columns."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from tabulate import tabulate

    shown = [{name: "" if value is None else value for name, value in row.items()} for row in rows]
    click.echo(tabulate(shown, headers="keys", tablefmt="simple"))
