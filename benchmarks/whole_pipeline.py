"""Time the pipeline of chapter 4, from scratch and with nothing changed. Its stages are read from `dvc.yaml`."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import yaml

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row
from tests.workplace import take_home

TITLE = "The pipeline, from scratch and with nothing changed"
STOCK, STOCK_UNCHANGED = "`dvc repro`, papermill's own engine", "`dvc repro`"
FLOOR = "the cells alone, packed onto two processors"
WARM_DVC = "`dvc repro`, engine, warm"
WARM, COLD, UNCHANGED = "`workshop repro`, warm", "`workshop repro`, cold", "`workshop repro`"
STOCK_MANY, MANY = "`dvc repro`, 200 stages", "`dvc-parallel repro`, 200 stages"
EXAMPLE = "FROM=examples/any_table"  # `make take-home` copies chapter 4 by default
STOCK_EXAMPLE, EXAMPLE_ALONE = "`dvc repro` of any_table, papermill's own engine", "`dvc-parallel repro` of any_table"
STOCK_COPY, COPY_ALONE = "`dvc repro` of the copy, papermill's own engine", "`dvc-parallel repro` of the copy"
ROWS = (
    Row("pipeline, warm workers", STOCK, WARM),
    Row("pipeline, warm workers, against the minimum", FLOOR, WARM),
    Row("pipeline, cluster just started", STOCK, COLD),
    Row("pipeline with plain DVC, warm workers", STOCK, WARM_DVC),
    Row("pipeline, nothing changed", STOCK_UNCHANGED, UNCHANGED),
    Row("200 stages, nothing changed", STOCK_MANY, MANY),
    Row("`examples/any_table` without a server, all stages forced", STOCK_EXAMPLE, EXAMPLE_ALONE),
    Row("a copy of chapter 4 without a server, all stages forced", STOCK_COPY, COPY_ALONE),
)
ENGINE = " --engine dask"
STAGE = {"cmd": "cp input ${item}.copy", "deps": ["input"], "outs": ["${item}.copy"]}


def sides(clone: Clone) -> list[Side]:
    """Return the sides: plain DVC, the cells alone, and our tools on warm workers or a cluster just started."""

    def prepare_stock() -> None:
        remove_results(clone)
        file = clone.pipeline / "dvc.yaml"
        text = file.read_text()
        if ENGINE not in text:
            raise RuntimeError(f"dvc.yaml has no command with{ENGINE}")
        file.write_text(text.replace(ENGINE, ""))
        clone.wait_until_warm()

    def prepare_warm() -> None:
        remove_results(clone)
        clone.wait_until_warm()

    def prepare_cold() -> None:
        remove_results(clone)
        clone.down()
        clone.up()  # new workers, without preloaded modules

    def run_unchanged(program: str) -> None:
        lock = (clone.pipeline / "dvc.lock").read_bytes()
        run(clone, program)
        if (clone.pipeline / "dvc.lock").read_bytes() != lock:
            raise RuntimeError(f"`{program} repro` changed dvc.lock")

    def run_many(program: str) -> None:
        clone.do(program, "repro", cwd=many)

    many = clone.new_folder("stages")
    (many / "input").write_text("input")
    (many / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"many": {"foreach": list(range(200)), "do": STAGE}}}))
    clone.do("dvc", "init", "--quiet", "--no-scm", cwd=many)
    clone.do("dvc", "repro", cwd=many)
    return [
        Side(STOCK, lambda: run(clone, "dvc"), prepare_stock),
        Side(WARM_DVC, lambda: run(clone, "dvc"), prepare_warm),
        Side(FLOOR, lambda: run_floor(clone), prepare_warm),
        Side(COLD, lambda: run(clone, "workshop"), prepare_cold, wait=False),
        Side(WARM, lambda: run(clone, "workshop"), prepare_warm),
        # `prepare` runs the same program untimed, so that the timed run has nothing to do.
        Side(STOCK_UNCHANGED, lambda: run_unchanged("dvc"), lambda: run(clone, "dvc")),
        Side(UNCHANGED, lambda: run_unchanged("workshop"), lambda: run(clone, "workshop")),
        Side(STOCK_MANY, lambda: run_many("dvc")),
        Side(MANY, lambda: run_many("dvc-parallel")),
        *sides_without_server(clone, (STOCK_EXAMPLE, EXAMPLE_ALONE), take_home(clone.new_folder("home"), EXAMPLE)),
        *sides_without_server(clone, (STOCK_COPY, COPY_ALONE), take_home(clone.new_folder("home"))),
    ]


def sides_without_server(clone: Clone, names: tuple[str, str], project: Path) -> list[Side]:
    """Return two sides, plain DVC and `dvc-parallel`, which run all stages of a project again in copies of it."""

    def run(program: str, folder: Path, *options: str) -> None:
        clone.do(program, "repro", *options, cwd=folder, environment=clone.fresh_environment)

    stock, ours = (clone.new_folder("project") / "copy" for _ in names)
    for folder in (stock, ours):
        shutil.copytree(project, folder, ignore=shutil.ignore_patterns(".dvc", ".git"))
        clone.do("dvc", "init", "--quiet", "--no-scm", cwd=folder)
    (stock / "dvc.yaml").write_text((stock / "dvc.yaml").read_text().replace(ENGINE, ""))
    for folder in (stock, ours):
        run("dvc", folder)  # creates mlflow.db
    programs = zip(names, ("dvc", "dvc-parallel"), (stock, ours), strict=True)
    return [Side(name, functools.partial(run, program, folder, "--force")) for name, program, folder in programs]


def warm_up(clone: Clone) -> None:
    """Run the pipeline once, so that each measured run finds a champion in production."""
    run(clone, "workshop")


def run(clone: Clone, program: str) -> None:
    """Run the pipeline; raise RuntimeError if an output of `dvc.yaml` is missing."""
    clone.do(program, "repro", cwd=clone.pipeline)
    outputs = [out for stage in stages(clone).values() for out in paths(stage["outs"])]
    if missing := [out for out in outputs if not (clone.pipeline / out).exists()]:
        raise RuntimeError(f"the pipeline did not write {missing}")


def run_floor(clone: Clone) -> float:
    """Return the minimum seconds that the notebooks' cells take; see `benchmarks.floor`."""
    variables = {"PYTHONPATH": str(clone.root), "OMP_NUM_THREADS": "1"}  # one thread, as on the workers
    output = clone.do("python", "-m", "benchmarks.floor", cwd=clone.pipeline, environment=clone.environment | variables)
    return float(output.split()[-1])


def stages(clone: Clone) -> dict[str, dict]:
    """Return the stages of the clone's `dvc.yaml`."""
    return yaml.safe_load((clone.pipeline / "dvc.yaml").read_text())["stages"]


def paths(entries: list) -> list[str]:
    """Return the paths of a stage's entries; an entry is a path or a mapping from a path to its flags."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def remove_results(clone: Clone) -> None:
    """Remove the pipeline's results and DVC's records of them."""
    clone.do("git", "checkout", "--quiet", "--", "4_pipeline")
    clone.do("git", "clean", "-dfxq", "--", "4_pipeline")
    (clone.pipeline / "dvc.lock").unlink(missing_ok=True)
    for folder in (clone.root / ".dvc" / "cache", clone.root / ".dvc" / "tmp", clone.folder / "dvc"):
        shutil.rmtree(folder, ignore_errors=True)
