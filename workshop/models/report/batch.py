"""Reports of many weeks, side by side on the cluster: predicted here once, drawn and printed there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import papermill_dask

from workshop.data.files import write_whole
from workshop.errors import EngineError, WorkshopError
from workshop.models.report import page, paper
from workshop.models.report.evidence import Evidence

HTML, PDF = ".html", ".pdf"


@dataclass
class Report:
    """A week's report: the ``files`` that were written, the ``error`` that kept one from being made, if any.

    ``printed`` tells whether there is a PDF; there is none where no browser is.
    """

    week: str
    files: list[Path] = field(default_factory=list)
    error: str | None = None

    @property
    def printed(self) -> bool:
        """Whether there is a PDF."""
        return any(file.suffix == PDF for file in self.files)

    def as_dict(self) -> dict:
        """Return the fields as JSON-able values."""
        return {"week": self.week, "files": list(map(str, self.files)), "error": self.error}


@dataclass(frozen=True)
class Made:
    """A page as bytes by the suffix of its file; ``trouble`` is what kept it from being printed."""

    week: str
    content: dict[str, bytes]
    trouble: str | None = None


def make(evidence: Evidence, week: str, template: str, *, to_paper: bool = True) -> Made:
    """Return the page on one week as HTML and, with a browser on this machine, as PDF; errors as `page.render`."""
    made = page.render(evidence, week, template)
    content, trouble = {HTML: made.html.encode()}, None
    try:
        printed = paper.pdf(made.html) if to_paper else None
    except WorkshopError as error:  # the page is there all the same
        printed, trouble = None, str(error)
    return Made(made.week, content if printed is None else content | {PDF: printed}, trouble)


def write(made: Made, folder: Path) -> Report:
    """Write a page's files whole, named by the week; a PDF of an earlier time does not stay beside a newer page."""
    report = Report(made.week, error=made.trouble)
    if PDF not in made.content:
        (folder / f"{made.week}{PDF}").unlink(missing_ok=True)
    for suffix, content in made.content.items():
        report.files.append(write_whole(folder / f"{made.week}{suffix}", content))
    return report


def make_many(
    evidence: Evidence, weeks: Sequence[str], template: str, folder: Path, *, to_paper: bool = True
) -> Iterator[Report]:
    """Write the reports of weeks into ``folder``, each made by a task on the cluster; yield each as it is done.

    A week that fails stops no other. The workers need no shared disk. Raises EngineError before anything is made when
    no worker can be used.
    """
    from distributed import as_completed

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(papermill_dask.connect())
        fit = [worker.address for worker in _fit(papermill_dask.survey(client))]
        sent = client.scatter(evidence, workers=fit, hash=False)
        tasks = {
            client.submit(make, sent, week, template, to_paper=to_paper, pure=False, workers=fit): week
            for week in weeks
        }
        for task in as_completed(tasks, loop=client.loop):
            yield _taken(task, tasks[task], folder)


def _taken(task, week: str, folder: Path) -> Report:
    """Write what a task made; what went wrong becomes words."""
    try:
        return write(task.result(), folder)
    except WorkshopError as error:
        return Report(week, error=str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other weeks go on
        return Report(week, error=f"{type(error).__name__}: {error}")


def _fit(workers: list) -> list:
    fit = [worker for worker in workers if not worker.problems]
    if not fit:
        raise EngineError(
            "No worker of the cluster can make the reports as they would be made here.",
            value="; ".join(f"{worker.name}: {', '.join(worker.problems)}" for worker in workers),
            expected="workers with this environment's versions",
            next_step="install requirements.txt where the workers run, then restart them",
        )
    return fit
