"""Numbers in the text cells of an executed notebook, and whether a cell of its own printed them."""

from __future__ import annotations

import re

from nbformat import NotebookNode

NUMBER = re.compile(r"(?<![\w.,:#/-])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*\w)")
NO_RESULT = re.compile(
    r"```.*?```|`[^`]*`|\]\([^)]*\)|[Cc]hapters? \d[\d to]*|[Ss]teps? \d|^\d+\. |MLflow [\d.]+", re.M | re.S
)


def unfounded(notebook: NotebookNode) -> list[str]:
    """Return the numbers, each with its text cell, that stand in no code and differ from all that the cells printed.

    Whole numbers below 10 are words. A number agrees with a printed one that rounds to it; after `about` it may be off
    by two in its last digit. A share in per cent may be printed as a fraction.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    sources = [cell.source + _text(cell.outputs) for cell in cells]
    sources += [code for cell in notebook.cells for code in re.findall(r"```python.*?```", cell.source, re.DOTALL)]
    printed = [_number(text) for text in NUMBER.findall("\n".join(sources))]
    unproven = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = NO_RESULT.sub(" ", cell.source)
            unproven += [f"{cell.id}: {match[0]}" for match in NUMBER.finditer(text) if not _holds(match, printed)]
    return unproven


def _holds(match: re.Match, printed: list[float]) -> bool:
    value, digits = _number(match[0]), len(match[0].partition(".")[2])
    if not digits and value < 10:
        return True
    about = match.string[: match.start()].rstrip().lower().endswith(("about", "near"))
    allowed = (2.5 if about else 0.5) * 10.0**-digits + 1e-9
    if match.string[match.end() :].lstrip().startswith("%"):
        printed = [*printed, *(100 * each for each in printed)]
    return any(abs(value - each) <= allowed for each in printed)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _text(outputs: list[NotebookNode]) -> str:
    return "".join(f"\n{output.get('text') or output.get('data', {}).get('text/plain', '')}" for output in outputs)
