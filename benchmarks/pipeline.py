"""The pipeline of chapter 4 from nothing made: no outputs, no lock, an empty DVC cache."""

from __future__ import annotations

import shutil

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Ratio

TITLE = "The pipeline from nothing made"
STOCK = "`dvc repro`, papermill's own engine"
WARM_DVC = "`dvc repro`, engine, warm"
WARM, COLD = "`workshop repro`, warm", "`workshop repro`, cold"
ROWS = (
    Ratio("pipeline, warm workers", STOCK, WARM, 5),
    Ratio("pipeline, cluster just started", STOCK, COLD, 3),
    Ratio("pipeline with plain DVC, warm workers", STOCK, WARM_DVC, 3),
)
ENGINE = " --engine dask"


def sides(place: Place) -> list[Side]:
    """Return the stock way and ours, each with workers that are warm and with a cluster that was just started."""

    def stock_ready() -> None:
        forget(place)
        file = place.pipeline / "dvc.yaml"
        text = file.read_text()
        if ENGINE not in text:
            raise RuntimeError("dvc.yaml names no engine")
        file.write_text(text.replace(ENGINE, ""))
        place.wait_until_warm()

    def warm_ready() -> None:
        forget(place)
        place.wait_until_warm()

    def cold_ready() -> None:
        forget(place)
        place.restart()

    def run(program: str) -> None:
        place.do(program, "repro", cwd=place.pipeline)
        if not (place.pipeline / "results" / "report.html").exists():
            raise RuntimeError("the pipeline made no report")

    return [
        Side(STOCK, lambda: run("dvc"), stock_ready),
        Side(WARM_DVC, lambda: run("dvc"), warm_ready),
        Side(WARM, lambda: run("workshop"), warm_ready),
        Side(COLD, lambda: run("workshop"), cold_ready, at_once=True),
    ]


def settle(place: Place) -> None:
    """Run the pipeline once: in each measured run there is a model in production that must be beaten."""
    place.do("workshop", "repro", cwd=place.pipeline)


def forget(place: Place) -> None:
    """Remove all that the pipeline has made, and all that DVC knows of it."""
    place.do("git", "checkout", "--quiet", "--", "4_pipeline")
    place.do("git", "clean", "-dfxq", "--", "4_pipeline")
    (place.pipeline / "dvc.lock").unlink(missing_ok=True)
    for kept in (place.root / ".dvc" / "cache", place.root / ".dvc" / "tmp", place.folder / "dvc"):
        shutil.rmtree(kept, ignore_errors=True)
