"""Time the search of examples/digits_search with joblib's processes, and with Dask on two machines over SSH."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row
from tests.workplace import BIN, ROOT

sys.path.append(str(ROOT / "examples" / "digits_search" / "tests"))

from laptops import ssh_cluster, two_nodes

TITLE = "A grid search"
LOKY, SSH = "joblib's own two processes", "two Dask workers by SSH"
# Search a small space first, so that the workers import their packages; then time a third of the large space.
CODE = """
import itertools, sys, time
import search
images, digits = (values[:1257] for values in search.load_digits(return_X_y=True))
folds = list(search.StratifiedKFold(3).split(images, digits))
data = [images, digits, *itertools.chain(*folds)]
with search.parallel_backend(sys.argv[1], data):
    search.new_search("small", folds).fit(images, digits)
    del search.SPACES["large"]["deskew__kw_args"]
    start = time.perf_counter()
    search.new_search("large", folds).fit(images, digits)
    print("seconds", time.perf_counter() - start)
"""
ROWS = (Row("a search of 98 combinations, 294 fits", LOKY, SSH),)


def sides(clone: Clone) -> list[Side]:
    """Return one side per backend, each with two processes on the same machine; only the search is timed."""
    folder = clone.root / "examples" / "digits_search"
    return [
        Side(LOKY, lambda: seconds(clone.do("taskset", "-c", "0,1", BIN / "python", "-c", CODE, "local", cwd=folder))),
        Side(SSH, search_by_ssh),
    ]


def warm_up(clone: Clone) -> None:
    """Do nothing: each side starts with a small search that is not timed."""


def search_by_ssh() -> float:
    """Search on two simulated machines, which share this machine's cores; return the seconds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        two_nodes(Path(folder)) as (laptop, _),
        ssh_cluster(laptop) as command,
    ):
        laptop.machine.path("/root/digits_search/timed.py").write_text(CODE)
        return seconds(laptop.run(f"python timed.py {command.split()[-1]}"))


def seconds(output: str) -> float:
    """Return the seconds that `CODE` printed."""
    return float(output.rsplit("seconds", 1)[1])
