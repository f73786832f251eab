"""The pipeline when nothing has changed."""

from __future__ import annotations

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Ratio

TITLE = "The pipeline with nothing changed"
DVC, OURS = "`dvc repro`", "`workshop repro`"
ROWS = (Ratio("pipeline, nothing to do", DVC, OURS, 1),)


def sides(place: Place) -> list[Side]:
    """Return DVC's own command and ours, on the same finished pipeline."""
    return [
        Side(DVC, lambda: _run(place, "dvc")),
        Side(OURS, lambda: _run(place, "workshop")),
    ]


def settle(place: Place) -> None:
    """Make the pipeline, and let each command see it once."""
    place.do("workshop", "repro", cwd=place.pipeline)
    for program in ("dvc", "workshop"):
        _run(place, program)


def _run(place: Place, program: str) -> None:
    lock = (place.pipeline / "dvc.lock").read_bytes()
    place.do(program, "repro", cwd=place.pipeline)
    if (place.pipeline / "dvc.lock").read_bytes() != lock:
        raise RuntimeError(f"`{program} repro` found something to do")
