"""Print how many minutes each chapter takes, as its README and the instructors' page say: python docs/minutes.py

A reader reads 200 words a minute, looks at a code cell for 20 seconds, and types a command in 30. A cell to write takes
5 minutes, and an exercise 10. Folded answers are not read. The seconds of running cells were measured on two cores.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WORDS_A_MINUTE, CELL_MINUTES, COMMAND_MINUTES, WRITE_MINUTES, EXERCISE_MINUTES = 200, 1 / 3, 1 / 2, 5, 10
RUN_SECONDS = {"1_starting_point": 100, "2_tracking": 180, "3_projects": 240, "4_pipeline": 420}
FOLDED = re.compile(r"<details>.*?</details>|```.*?```", re.DOTALL)


class Minutes(NamedTuple):
    """The minutes of a chapter: to read and run it, with its cells to write, and with its exercises as well."""

    read: int
    write: int
    everything: int


def minutes_of(folder: str) -> Minutes:
    """Return the minutes of a chapter's folder, each rounded to 5."""
    page = (ROOT / folder / "README.md").read_text()
    commands = "".join(re.findall(r"```(?:sh|bash)\n(.*?)```", page, re.DOTALL)).splitlines()
    texts, cells, writes, exercises = [page], 0, 0, 0
    for path in sorted((ROOT / folder).glob("*.ipynb")):
        notebook = json.loads(path.read_text())["cells"]
        tags = [tag for cell in notebook for tag in cell["metadata"].get("tags", [])]
        if path.stem == "exercises":
            exercises += tags.count("exercise")
            continue
        writes += tags.count("exercise")
        cells += sum(cell["cell_type"] == "code" for cell in notebook)
        texts += ["".join(cell["source"]) for cell in notebook if cell["cell_type"] == "markdown"]
    if folder == "4_pipeline":  # its notebooks are run by the pipeline, and looked at one by one in the text
        texts, cells = texts[:1], 0
    words = sum(len(FOLDED.sub(" ", text).split()) for text in texts)
    read = words / WORDS_A_MINUTE + cells * CELL_MINUTES + len(commands) * COMMAND_MINUTES + RUN_SECONDS[folder] / 60
    write = read + writes * WRITE_MINUTES
    return Minutes(*(5 * round(each / 5) for each in (read, write, write + exercises * EXERCISE_MINUTES)))


if __name__ == "__main__":
    rows = {folder: minutes_of(folder) for folder in RUN_SECONDS}
    rows["all"] = Minutes(*map(sum, zip(*rows.values(), strict=True)))
    for folder, (read, write, everything) in rows.items():
        print(f"{folder:17} {read:4} to read and run, {write:4} with cells to write, {everything:4} with exercises")
