"""Chapter 1: the table, three notebooks saved as they ran, the report."""

from __future__ import annotations

from functools import partial

from workshop.teaching.checkpoints.evidence import Evidence
from workshop.teaching.checkpoints.step import BROUGHT, DONE, Step, Verdict, missing
from workshop.teaching.outline import MODELS, chapter

CHAPTER = chapter(1)
TABLE = f"{CHAPTER.folder}/germany.csv"
REPORT = f"{CHAPTER.folder}/report/report.html"
TITLES = {"model_linreg": "A linear regression", "model_rf": "A random forest", "model_keras": "A neural network"}


def table(evidence: Evidence) -> Verdict:
    """Look for the table that everything in the chapter reads."""
    if TABLE in evidence.present:
        return BROUGHT if TABLE in evidence.brought else DONE
    return missing(f"There is no {TABLE}. Run the notebook to its last cell, which writes it.")


def model(name: str, evidence: Evidence) -> Verdict:
    """Look whether a notebook was saved as it ran, from top to bottom."""
    path = f"{CHAPTER.folder}/{name}.ipynb"
    saved = evidence.notebooks.get(path)
    if saved is None:
        return missing(f"{path} is not there, or damaged. `workshop reset 1` brings it back.")
    if saved.whole:
        return DONE
    if saved.failed:
        mend = "Mend it" if TABLE in evidence.present else "It needs the table of the first step: make that"
        return missing(f"A cell of it ended with an error. {mend}, then Run > Run All Cells, and save with Ctrl-S.")
    if saved.executed:
        return missing(f"{saved.executed} of its {saved.cells} cells ran. Run > Run All Cells, and save with Ctrl-S.")
    if TABLE not in evidence.present:
        return missing("It needs the table of the first step. Then Run > Run All Cells, and save with Ctrl-S.")
    return missing("It was saved without outputs. Run > Run All Cells, and save with Ctrl-S.")


def report(evidence: Evidence) -> Verdict:
    """Look for the weekly report."""
    if REPORT in evidence.present:
        return DONE
    return missing(f"There is no {REPORT}. Type `python make_report.py` in the folder {CHAPTER.folder}/report.")


STEPS = (
    Step("Weather and power in one table", f"{CHAPTER.folder}/make_processed_data.ipynb", table),
    *(Step(TITLES[name], f"{CHAPTER.folder}/{name}.ipynb", partial(model, name)) for name in MODELS),
    Step("The weekly report", CHAPTER.readme, report),
)
