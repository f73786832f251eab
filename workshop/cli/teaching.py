"""What attendees and instructors type: what is done, what is next, and back to the start."""

from __future__ import annotations

import shutil
import textwrap

import click

from workshop.cli.printing import json_option, one_line, print_rows, tell

# Addresses and commands are not broken, since somebody may want to copy them.
HANGING = {
    "initial_indent": " " * 7,
    "subsequent_indent": " " * 14,
    "break_long_words": False,
    "break_on_hyphens": False,
}


@click.command()
@click.argument("chapter", required=False, type=click.IntRange(1, 4))
@json_option
def check(chapter: int | None, as_json: bool) -> None:
    """Say what of the workshop is done, and where to go on; exit 1 when CHAPTER is named and not complete.

    Looks at what is really there: files, the tracking store, DVC. The start page, START.md, is written anew.

    \b
    Example:  workshop check 2
    """
    from workshop.settings import get_settings
    from workshop.teaching import startpage
    from workshop.teaching.checkpoints import examine

    settings = get_settings()
    progress = examine(settings)
    shown = progress.of(chapter) if chapter else list(progress.checkpoints)
    if as_json:
        print_rows([checkpoint.as_dict() for checkpoint in shown], as_json)
    else:
        _print_chapters(progress, [chapter] if chapter else [1, 2, 3, 4])
    startpage.write(settings, progress)
    if chapter and not progress.is_complete(chapter):
        raise SystemExit(1)


def _print_chapters(progress, numbers: list[int]) -> None:
    """Print chapters with their steps; all reasons of a single chapter, else that of what is next."""
    from workshop.teaching import outline, startpage

    width = min(shutil.get_terminal_size().columns, 120)
    for number in numbers:
        steps = progress.of(number)
        there = sum(step.there for step in steps)
        click.secho(f"{number}  {outline.chapter(number).title}, {there} of {len(steps)}", bold=True)
        for step in steps:
            click.echo(f"   {startpage.SIGNS[step.state]} {step.title}")
            following = step == progress.next
            if following or (len(numbers) == 1 and step.reason):
                click.echo(f"       where: {step.place}")
                click.echo(textwrap.fill(f"why:   {step.reason}", width, **HANGING))
        click.echo()
    click.echo(startpage.legend(step for number in numbers for step in progress.of(number)))
    click.echo(_next(progress.next_of(numbers)))
    click.echo(f"The start page, {startpage.NAME}, says the same. Where it is open: {startpage.RELOAD}")


def _next(following) -> str:
    if following is None:
        return "All of it is done."
    return f"Next: {following.title} ({following.place}, chapter {following.chapter})"


@click.command()
@click.argument("chapter", type=click.IntRange(1, 4))
@click.option("--yes", is_flag=True, help="Do not ask first.")
def reset(chapter: int, yes: bool) -> None:
    """Put the files of CHAPTER back to their start; your own copies are kept aside.

    The start is what was cloned: your commits stay in git, and do not count. Runs in the tracking store, what the
    pipeline made, virtual environments and the other chapters stay as they are.

    \b
    Example:  workshop reset 2
    """
    from workshop.settings import get_settings
    from workshop.teaching import reset as resetting
    from workshop.teaching import startpage

    settings = get_settings()
    planned = resetting.plan(settings, chapter)
    if planned.is_empty:
        tell(f"{planned.chapter.folder} is at its start already (commit {planned.start[:7]})")
        return
    tell(f"{planned.chapter.folder} goes back to its start, commit {planned.start[:7]}:")
    for title, names in (
        ("changed, put back", planned.changed),
        ("deleted, put back", planned.deleted),
        ("your own, or made here, moved away", planned.own),
        ("exercises, not solved any more", planned.solved),
    ):
        for name in names:
            tell(f"  {title}: {one_line(str(name))}")
    if not yes:
        click.confirm(f"  Your copies go to {planned.kept}. Go on?", abort=True, err=True)
    kept = resetting.carry_out(settings, planned)
    if planned.changed or planned.own:
        tell(f"your copies are in {kept}")
    tell("a notebook that is open in JupyterLab: File > Reload Notebook from Disk, before you save it")
    startpage.write(settings)
