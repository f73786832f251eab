"""Commands for attendees and instructors: `check`, `doctor` and `reset`."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict

import click
from forecast.terms.errors import typeable

from workshop.cli import json_option, print_rows, report
from workshop.settings import get_settings
from workshop.teaching import chapter_files, checkpoints, start_page
from workshop.teaching.doctor import WRONG, examine

DOCTOR_SIGNS = {"ok": "ok ", "look": "?  ", "wrong": "!! "}


@click.command()
@click.argument("chapter", required=False, type=click.Choice("1234"), metavar="[CHAPTER]")
@json_option
def check(chapter: str | None, as_json: bool) -> None:
    """Show which steps are done and which one is next; exit with code 1 if CHAPTER is given but not complete.

    The command checks files, the tracking server, git and DVC, and rewrites the start page, START.md.

    \b
    Example:  workshop check 2
    """
    settings = get_settings()
    steps = checkpoints.examine(checkpoints.state_of(settings))
    start_page.write(settings, steps)
    chosen = [step for step in steps if chapter in (None, str(step.chapter))]
    is_complete = all(step.done for step in chosen)
    if as_json:
        print_rows([asdict(step) for step in chosen], as_json)
    else:
        following = checkpoints.next_step(steps if is_complete else chosen, checkpoints.first_chapter(settings))
        for each in checkpoints.CHAPTERS:
            of_chapter = [step for step in chosen if step.chapter == each.number]
            if not of_chapter:
                continue
            click.secho(f"{each.number}  {each.title}, {checkpoints.summary(of_chapter)}", bold=True)
            for step in of_chapter:
                click.echo(_wrap(f"{start_page.SIGNS[step.done]} {step.title}", 3))
                if step.reason and (chapter or step == following):  # without CHAPTER, only the next step's hint
                    click.echo(f"{_wrap(step.place, 7)}\n{_wrap(step.reason, 7)}")
            click.echo()
        click.echo(start_page.LEGEND)
        where = f" ({following.place}, chapter {following.chapter})" if following else ""
        click.echo(_wrap(f"Next: {following.title}{where}" if following else "All steps are done."))
        click.echo(f"{start_page.START_PAGE} shows the same steps. If the page is open, choose {start_page.RELOAD}")
    if chapter and not is_complete:
        raise SystemExit(1)


def _wrap(text: str, spaces: int = 0) -> str:
    """Indent a string and wrap it to the terminal's width without breaking words."""
    wrapper = textwrap.TextWrapper(shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent = wrapper.subsequent_indent = " " * spaces
    return wrapper.fill(text)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine and say what to fix; exit with code 1 if a check finds something that will fail.

    `ok`: fine; `?`: works, but may surprise you; `!!`: will fail.

    \b
    Example:  workshop doctor
    """
    findings = examine(get_settings())
    if as_json:
        print_rows([asdict(finding) for finding in findings], as_json)
    for finding in findings if not as_json else ():
        next_step = f"\n    next: {typeable(finding.next_step)}" if finding.next_step else ""
        click.echo(f"{DOCTOR_SIGNS[finding.verdict]} {finding.check}: {finding.found}{next_step}")
    if any(finding.verdict == WRONG for finding in findings):
        raise SystemExit(1)


@click.command()
@click.argument("chapter", type=click.Choice("1234"), metavar="CHAPTER")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def reset(chapter: str, yes: bool) -> None:
    """Restore the original files of CHAPTER, after moving yours to a backup folder; print the backup's path.

    The original files are those that you cloned; your own commits stay in git. Tracked runs, pipeline outputs and other
    chapters are not changed.

    \b
    Example:  workshop reset 2
    """
    settings = get_settings()
    start, folder = chapter_files.find_start(settings.root), checkpoints.CHAPTERS[int(chapter) - 1].folder
    report(f"this backs up your files, restores {folder} to commit {start[:7]}, and marks its exercises unsolved")
    if not yes:
        click.confirm("  Continue?", abort=True, err=True)
    report(f"your files are in {chapter_files.restore_chapter(settings, int(chapter), start)}")
    report("if a notebook is open in JupyterLab, choose File > Reload Notebook from Disk before you save it")
    start_page.write(settings)
