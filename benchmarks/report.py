"""The results as a file and as the table in README.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from benchmarks.rows import HEADER

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def read_results(file: Path) -> dict[str, dict]:
    """Return the results by benchmark; none when there is no file yet."""
    return json.loads(file.read_text()) if file.exists() else {}


def write_results(file: Path, results: Mapping[str, dict]) -> None:
    """Write the results."""
    file.write_text(json.dumps(results, indent=1) + "\n")


def machine() -> str:
    """Say in a line on what the figures were measured."""
    return f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def table(results: Mapping[str, dict], benchmarks: Mapping[str, ModuleType]) -> str:
    """Return the table in Markdown, with a line on each run under it."""
    measured = {name: module for name, module in benchmarks.items() if name in results}
    rows = [
        row.cells(figures)
        for name, module in measured.items()
        for row in module.ROWS
        if row.names <= (figures := results[name]["figures"]).keys()  # the rest was not to be had on that machine
    ]
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *map(_line, rows), ""]
    for name, module in measured.items():
        result = results[name]
        busy = max(value for values in result["busy_percent"].values() for value in values)
        lines.append(
            f"- {module.TITLE} (`{name}`): {result['runs']} runs, {result['date']}, {result['machine']}; the machine "
            f"was at most {busy:.0f} % busy when a run began."
        )
    return "\n".join(lines)


def write_table(text: str) -> None:
    """Put the table between its markers in README.md."""
    page = README.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"
