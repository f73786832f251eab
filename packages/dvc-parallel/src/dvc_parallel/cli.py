"""The command line: `dvc-parallel repro` and `dvc-parallel check`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import click

from dvc_parallel.repro import reproduce
from dvc_parallel.settings import amount
from dvc_parallel.states import State

LIMIT_HELP = "Total of the resource NAME that running stages may use; repeat the option for each resource."


def lines(write: Callable[[str], object]) -> Callable[[str, State], None]:
    """Return a progress callback for `reproduce` that writes a line whenever the state of a stage changes.

    Parameters
    ----------
    write : callable
        Called with each line.

    Examples
    --------
    >>> lines(print)("train", State.UNCHANGED)
      train: unchanged
    <BLANKLINE>
    """
    start_times: dict[str, float] = {}

    def progress(stage: str, state: State) -> None:
        if state is State.RUNNING:
            start_times[stage] = time.monotonic()
        is_timed = state is State.DONE and stage in start_times
        write(f"  {stage}: {f'{time.monotonic() - start_times[stage]:.1f} s' if is_timed else state}\n")

    return progress


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dvc-parallel")
def main() -> None:
    """Run independent stages of dvc.yaml in parallel.

    \b
    Example:  dvc-parallel repro
    """


def _read_limits(_context: object, _option: object, texts: tuple[str, ...]) -> dict[str, Decimal]:
    return {name: amount(number) for name, _, number in (text.partition("=") for text in texts)}


@main.command()
@click.argument("targets", nargs=-1)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Maximum number of parallel stages; by default one per processor."
)
@click.option("--limit", "limits", multiple=True, callback=_read_limits, metavar="NAME=NUMBER", help=LIMIT_HELP)
@click.option("-f", "--force", is_flag=True, help="Also run unchanged stages.")
@click.option("-s", "--single-item", is_flag=True, help="Run only the targets, without their dependencies.")
@click.option("-p", "--pipeline", is_flag=True, help="Run the whole pipelines that the targets belong to.")
@click.option("-P", "--all-pipelines", is_flag=True, help="Run all pipelines in the repository.")
@click.option("-R", "--recursive", is_flag=True, help="Run all stages in the target folders and their subfolders.")
@click.option("--downstream", is_flag=True, help="Run the targets and the stages that depend on them.")
@click.option("--glob", is_flag=True, help="Interpret the targets as glob patterns.")
@click.option("--run-cache/--no-run-cache", default=True, help="Restore results from DVC's run cache.")
def repro(**options: Any) -> None:
    """Run changed stages as `dvc repro` does, but run independent stages in parallel.

    TARGETS are stages in DVC's notation; the default is all stages of the dvc.yaml in this folder.

    \b
    Example:  dvc-parallel repro -j 4 train
    """
    write = functools.partial(click.echo, nl=False, err=True)
    reproduce(progress=lines(write), notice=lambda text: write(f"  {text}\n"), **options)


@main.command()
def check() -> None:
    """List the files in this folder that stages import but do not declare as dependencies; exit with code 1 if any.

    \b
    Example:  dvc-parallel check
    """
    from dvc_parallel.imports import undeclared

    findings = undeclared()
    click.echo("".join(f"{line}\n" for line in findings), nl=False)
    raise SystemExit(bool(findings))
