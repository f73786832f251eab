"""What attendees and instructors type: what is done, what is next, and back to the start."""

from __future__ import annotations

import click

from workshop.cli.printing import json_option


@click.command()
@click.argument("chapter", required=False, type=click.IntRange(1, 4))
@json_option
def check(chapter: int | None, as_json: bool) -> None:
    """Say what of the workshop is done, and where to go on.

    \b
    Example:  workshop check 2
    """
    raise NotImplementedError


@click.command()
@click.argument("chapter", type=click.IntRange(1, 4))
@click.option("--yes", is_flag=True, help="Do not ask first.")
def reset(chapter: int, yes: bool) -> None:
    """Put the files of CHAPTER back to their start; your own copies are kept aside.

    \b
    Example:  workshop reset 2
    """
    raise NotImplementedError
