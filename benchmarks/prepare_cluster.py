"""`prepare` for many countries and years on a cluster of two workers: time and memory at 1, 4 and 16 times the data."""

from __future__ import annotations

import contextlib
import functools
import os
import threading

import psutil

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Figure, Ratio
from tests.data.large import write_countries

TITLE = "Preparing many countries"
SIZES = {"1x": (10, 8), "4x": (20, 16), "16x": (40, 32)}  # countries, years
LAST_YEAR = 2016
SAMPLE_SECONDS = 0.1
ONE_BY_ONE = "one process, a country after the other, 4x"


def name_of(size: str) -> str:
    """Return what the side of a size is called."""
    return f"two workers, {size}"


def memory(size: str) -> str:
    """Return what the figure of the workers' memory is called."""
    return f"{name_of(size)}: peak memory of a worker"


ROWS = (
    Ratio("20 countries, 16 years (4x)", ONE_BY_ONE, name_of("4x")),
    Ratio("4 times the data: as many times as long", name_of("4x"), name_of("1x")),
    Ratio("16 times the data: as many times as long", name_of("16x"), name_of("1x")),
    *(Figure(f"peak private memory of a worker, {size}", memory(size), "MB", digits=0) for size in SIZES),
)


def sides(place: Place) -> list[Side]:
    """Return one process for the middle size, and the cluster for each."""
    for size, (countries, years) in SIZES.items():
        if not (place.folder / size).exists():
            write_countries(place.folder / size, countries, years)
    one = Side(ONE_BY_ONE, functools.partial(one_by_one, place))
    return [one, *(Side(name_of(size), functools.partial(on_cluster, place, size)) for size in SIZES)]


def one_by_one(place: Place) -> None:
    """Read, prepare and write a country after the other."""
    from tests.data.large import CODES
    from workshop.data import origin, raw
    from workshop.data.prepare import combine, write_parquet

    folder, (countries, years) = place.folder / "4x", SIZES["4x"]
    made = place.new_folder("one")
    for code in CODES[:countries]:
        first = LAST_YEAR + 1 - years
        frame, _ = combine(raw.read(folder, code), first, LAST_YEAR, origin.of_folder(folder), code)
        for year, part in frame.groupby(frame["utc_timestamp"].dt.year):
            write_parquet(part, made / f"country={code}" / f"year={year}" / "hours.parquet")


def on_cluster(place: Place, size: str) -> dict[str, float]:
    """Prepare all countries of a size on the cluster; return the most that one of its workers held."""
    from workshop.data.countries import prepare_countries

    made, years = place.new_folder("made"), SIZES[size][1]
    with place.client() as client:
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        with peak_of(workers) as peak:
            prepare_countries(
                place.folder / size,
                made,
                LAST_YEAR + 1 - years,
                LAST_YEAR,
                "all",
                lambda: contextlib.nullcontext(client),
            )
    return {memory(size): peak[0]}


@contextlib.contextmanager
def peak_of(processes: list[psutil.Process]):
    """Yield a list whose one value is the most private memory, in MB, that one of the processes has had meanwhile."""
    peak, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], *(process.memory_full_info().uss / 1e6 for process in processes))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield peak
    finally:
        ended.set()
        looker.join()


def settle(place: Place) -> None:
    """Prepare the smallest once."""
    on_cluster(place, "1x")
