"""The pipeline of chapter 4: from nothing made, and with nothing changed. What it does is read from `dvc.yaml`."""

from __future__ import annotations

import shutil

import yaml

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row

TITLE = "The pipeline, from nothing made and with nothing changed"
STOCK, STOCK_UNCHANGED = "`dvc repro`, papermill's own engine", "`dvc repro`"
FLOOR = "the cells alone, in one warm process, packed onto two processors"
WARM_DVC = "`dvc repro`, engine, warm"
WARM, COLD, UNCHANGED = "`workshop repro`, warm", "`workshop repro`, cold", "`workshop repro`"
STOCK_MANY, MANY = "`dvc repro`, 200 stages", "`dvc-parallel repro`, 200 stages"
ROWS = (
    Row("pipeline, warm workers", STOCK, WARM),
    Row("pipeline, warm workers, against its floor", FLOOR, WARM),
    Row("pipeline, cluster just started", STOCK, COLD),
    Row("pipeline with plain DVC, warm workers", STOCK, WARM_DVC),
    Row("pipeline, nothing to do", STOCK_UNCHANGED, UNCHANGED),
    Row("200 stages, nothing to do", STOCK_MANY, MANY),
)
ENGINE = " --engine dask"
STAGE = {"cmd": "cp given ${item}.made", "deps": ["given"], "outs": ["${item}.made"]}


def sides(clone: Clone) -> list[Side]:
    """Return the plain way and ours, with warm workers and with a cluster that was just started."""

    def stock_ready() -> None:
        forget(clone)
        file = clone.pipeline / "dvc.yaml"
        text = file.read_text()
        if ENGINE not in text:
            raise RuntimeError("dvc.yaml names no engine")
        file.write_text(text.replace(ENGINE, ""))
        clone.wait_until_warm()

    def warm_ready() -> None:
        forget(clone)
        clone.wait_until_warm()

    def cold_ready() -> None:
        forget(clone)
        clone.down()
        clone.up()  # no worker has anything imported that it does not import when it starts

    def run_unchanged(program: str) -> None:
        lock = (clone.pipeline / "dvc.lock").read_bytes()
        run(clone, program)
        if (clone.pipeline / "dvc.lock").read_bytes() != lock:
            raise RuntimeError(f"`{program} repro` found something to do")

    def run_many(program: str) -> None:
        clone.do(program, "repro", cwd=many)

    many = clone.new_folder("stages")
    (many / "given").write_text("given")
    (many / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"many": {"foreach": list(range(200)), "do": STAGE}}}))
    clone.do("dvc", "init", "--quiet", "--no-scm", cwd=many)
    clone.do("dvc", "repro", cwd=many)
    return [
        Side(STOCK, lambda: run(clone, "dvc"), stock_ready),
        Side(WARM_DVC, lambda: run(clone, "dvc"), warm_ready),
        Side(FLOOR, lambda: run_floor(clone), warm_ready),
        Side(COLD, lambda: run(clone, "workshop"), cold_ready, at_once=True),
        Side(WARM, lambda: run(clone, "workshop"), warm_ready),
        # on what the side before has made
        Side(STOCK_UNCHANGED, lambda: run_unchanged("dvc"), lambda: run(clone, "dvc")),
        Side(UNCHANGED, lambda: run_unchanged("workshop"), lambda: run(clone, "workshop")),
        Side(STOCK_MANY, lambda: run_many("dvc")),
        Side(MANY, lambda: run_many("dvc-parallel")),
    ]


def settle(clone: Clone) -> None:
    """Run the pipeline once: in each measured run there is a model in production that must be beaten."""
    run(clone, "workshop")


def run(clone: Clone, program: str) -> None:
    """Run the pipeline; raise RuntimeError when an output of `dvc.yaml` is not there afterwards."""
    clone.do(program, "repro", cwd=clone.pipeline)
    outputs = [out for stage in stages(clone).values() for out in paths(stage["outs"])]
    if missing := [out for out in outputs if not (clone.pipeline / out).exists()]:
        raise RuntimeError(f"the pipeline did not make {missing}")


def run_floor(clone: Clone) -> float:
    """Return the seconds that the cells of the pipeline's notebooks need at least; see `benchmarks.floor`."""
    places = {"PYTHONPATH": str(clone.root), "OMP_NUM_THREADS": "1"}  # a thread each, as on the workers
    output = clone.do("python", "-m", "benchmarks.floor", cwd=clone.pipeline, environment=clone.environment | places)
    return float(output.split()[-1])


def stages(clone: Clone) -> dict[str, dict]:
    """Return the stages of the clone's `dvc.yaml`."""
    return yaml.safe_load((clone.pipeline / "dvc.yaml").read_text())["stages"]


def paths(entries: list) -> list[str]:
    """Return the paths of a stage's entries, each of which is a path or a mapping from a path to its flags."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def forget(clone: Clone) -> None:
    """Remove all that the pipeline has made, and all that DVC knows of it."""
    clone.do("git", "checkout", "--quiet", "--", "4_pipeline")
    clone.do("git", "clean", "-dfxq", "--", "4_pipeline")
    (clone.pipeline / "dvc.lock").unlink(missing_ok=True)
    for kept in (clone.root / ".dvc" / "cache", clone.root / ".dvc" / "tmp", clone.folder / "dvc"):
        shutil.rmtree(kept, ignore_errors=True)
