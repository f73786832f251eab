"""Commands for attendees and instructors: `check`, `doctor` and `reset`."""

from __future__ import annotations

import shutil
import textwrap

import click

from workshop.cli.printing import json_option, one_line, print_rows, tell

DOCTOR_SIGNS = {"ok": "ok ", "look": "?  ", "wrong": "!! "}


@click.command()
@click.argument("chapter", required=False, type=click.IntRange(1, 4))
@json_option
def check(chapter: int | None, as_json: bool) -> None:
    """Show which steps are done and which one is next; exit 1 when CHAPTER is given and not complete.

    It looks at files, the tracking server, git and DVC, and writes the start page, START.md.

    \b
    Example:  workshop check 2
    """
    from dataclasses import asdict

    from workshop.settings import get_settings
    from workshop.teaching import checkpoints, startpage

    settings = get_settings()
    progress = checkpoints.examine(settings)
    startpage.write(settings, progress)
    numbers = [chapter] if chapter else [each.number for each in checkpoints.CHAPTERS]
    steps = [step for number in numbers for step in progress.of(number)]
    if as_json:
        print_rows([asdict(step) for step in steps], as_json)
    else:
        _print_steps(progress, numbers)
    if chapter and not all(step.done for step in steps):
        raise SystemExit(1)


def _print_steps(progress, numbers: list[int]) -> None:
    """Print chapters with their steps, and what to do for open steps: of one chapter all, else the next one only."""
    from workshop.teaching import startpage
    from workshop.teaching.checkpoints import CHAPTERS

    width, following = min(shutil.get_terminal_size().columns, 120), progress.next_of(*numbers)
    for number in numbers:
        steps = progress.of(number)
        done = sum(bool(step.done) for step in steps)
        click.secho(f"{number}  {CHAPTERS[number - 1].title}, {done} of {len(steps)}", bold=True)
        for step in steps:
            click.echo(f"   {startpage.SIGNS[step.done]} {step.title}")
            if step == following or (len(numbers) == 1 and step.reason):
                click.echo(f"       where: {step.place}")
                indents = {"initial_indent": " " * 7, "subsequent_indent": " " * 14}
                # Lines are not broken inside addresses and commands, which people copy.
                text = f"to do: {step.reason}"
                click.echo(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False, **indents))
        click.echo()
    click.echo(startpage.legend(step for number in numbers for step in progress.of(number)))
    where = f" ({following.place}, chapter {following.chapter})" if following else ""
    click.echo(f"Next: {following.title}{where}" if following else "All of it is done.")
    click.echo(f"The start page, {startpage.NAME}, shows the same. If it is open: {startpage.RELOAD}")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Examine this machine and say what to type; exit 1 when something will fail.

    `ok` is well, `?` works yet may surprise, `!!` will fail.

    \b
    Example:  workshop doctor
    """
    from workshop.settings import get_settings
    from workshop.teaching.doctor import examine

    findings = [finding.as_dict() for finding in examine(get_settings())]
    if as_json:
        print_rows(findings, as_json)
    for finding in findings if not as_json else ():
        click.echo(f"{DOCTOR_SIGNS[finding['verdict']]} {finding['check']}: {finding['found']}")
        if finding["next_step"]:
            click.echo(f"    next: {finding['next_step']}")
    if not all(finding["ok"] for finding in findings):
        raise SystemExit(1)


@click.command()
@click.argument("chapter", type=click.IntRange(1, 4))
@click.option("--yes", is_flag=True, help="Do not ask first.")
def reset(chapter: int, yes: bool) -> None:
    """Put the files of CHAPTER back to their start; your own copies are kept.

    The start is what you cloned: your commits stay in git and do not count. Runs in the tracking store, outputs of the
    pipeline, virtual environments and the other chapters stay as they are.

    \b
    Example:  workshop reset 2
    """
    from workshop.settings import get_settings
    from workshop.teaching import reset as resetting
    from workshop.teaching import startpage

    settings = get_settings()
    plan = resetting.plan(settings, chapter)
    if plan.is_empty:
        tell(f"{plan.chapter.folder} is at its start already (commit {plan.start[:7]})")
        return
    tell(f"{plan.chapter.folder} is put back to its start, commit {plan.start[:7]}:")
    for title, names in (
        ("changed, put back", plan.changed),
        ("deleted, put back", plan.deleted),
        ("added, moved away", plan.added),
        ("exercise, not solved any more", plan.solved),
    ):
        for name in names:
            tell(f"  {title}: {one_line(str(name))}")
    if not yes:
        click.confirm(f"  Your copies go to {plan.kept}. Continue?", abort=True, err=True)
    resetting.carry_out(settings, plan)
    if plan.changed or plan.added:
        tell(f"your copies are in {plan.kept}")
    tell("a notebook that is open in JupyterLab: File > Reload Notebook from Disk, before you save it")
    startpage.write(settings)
