"""Raw files of the true size: `prepare` against the usual way, and the libraries that could read for it."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import click
import psutil

from benchmarks.measure import Side
from benchmarks.place import Place
from benchmarks.rows import Ratio
from tests.data.large import write_full_size

TITLE = "Preparing raw files of the true size"
SAMPLE_SECONDS = 0.005

# Each side is a program of its own: what it imports, and what is measured, given both files and their needed columns.
WHOLE, OURS = "`pandas.read_csv`, whole files", "`prepare` reads"
ALL_PLAIN, ALL_OURS = "whole files, then the rule in pandas", "`prepare` and `write`"
READERS = {
    WHOLE: ("import pandas as pd", "[pd.read_csv(file) for file in files]"),
    "pandas, `usecols`": (
        "import pandas as pd",
        "[pd.read_csv(file, usecols=names, parse_dates=names[:1]) for file, names in files.items()]",
    ),
    "polars, lazy scan": (
        "import polars",
        "[polars.scan_csv(f, try_parse_dates=True).select(c).collect(engine='streaming') for f, c in files.items()]",
    ),
    "duckdb": (
        "import duckdb, pandas",
        '[duckdb.sql(f\'select {",".join(names)} from read_csv("{file}")\').df() for file, names in files.items()]',
    ),
    "dask.dataframe": (
        "import dask.dataframe as dd",
        "[dd.read_csv(f, usecols=c, parse_dates=c[:1]).compute(scheduler='threads') for f, c in files.items()]",
    ),
    OURS: ("import pandas, pyarrow.compute, pyarrow.csv\nfrom workshop.data import raw", "raw.read(folder)"),
    ALL_PLAIN: (
        "import pandas as pd, pyarrow.parquet",
        """
power, weather = [pd.read_csv(file, parse_dates=["utc_timestamp"]) for file in files]
both = power.drop_duplicates("utc_timestamp").merge(weather.drop_duplicates("utc_timestamp"))
both = both[[*dict.fromkeys(name for names in files.values() for name in names)]].dropna().sort_values("utc_timestamp")
both = both[both["utc_timestamp"].dt.year.between(2013, 2016)]
both.to_parquet(folder / "plain.parquet")
both.to_csv(folder / "plain.table", index=False)
""",
    ),
    ALL_OURS: (
        "import pandera.pandas, pyarrow.compute, pyarrow.csv, pyarrow.parquet\nfrom workshop.data import prepare",
        "prepare.write(prepare.prepare(folder)[0], folder)",
    ),
}
PROGRAM = """
import sys, time
from pathlib import Path
{imports}
from workshop.data.raw import COLUMNS, FILES
folder = Path(sys.argv[1])
needed = {{part: ["utc_timestamp", *(f"DE_{{name}}" for name in names)] for part, names in COLUMNS.items()}}
files = {{str(folder / FILES[part]): names for part, names in needed.items()}}
print("ready", flush=True)
input()
began = time.perf_counter()
{body}
print(time.perf_counter() - began)
"""


def memory(name: str) -> str:
    """Return what the figure of a side's memory is called."""
    return f"{name}: peak memory"


ROWS = (
    Ratio("raw files of 276 MB read", WHOLE, OURS, 4),
    Ratio("the same: peak private memory", memory(WHOLE), memory(OURS), 3, unit="MB"),
    *(
        row
        for name in READERS
        if name not in (WHOLE, OURS, ALL_PLAIN, ALL_OURS)
        for row in (
            Ratio(f"the same by {name}", WHOLE, name),
            Ratio(f"the same by {name}: memory", memory(WHOLE), memory(name), unit="MB"),
        )
    ),
    Ratio("raw files to germany.parquet and .csv", ALL_PLAIN, ALL_OURS),
    Ratio("the same: peak private memory", memory(ALL_PLAIN), memory(ALL_OURS), unit="MB"),
)


def sides(place: Place) -> list[Side]:
    """Return each way to read the files; a library that is not installed is left out, and said."""
    folder = place.folder / "full-size"
    if not folder.exists():
        write_full_size(folder)
    found = []
    for name in READERS:
        library = name.split(",")[0]
        if library in ("polars", "duckdb") and importlib.util.find_spec(library) is None:
            click.echo(f"  {library} is not installed and left out", err=True)
            continue
        found.append(Side(name, functools.partial(run, place, name, folder)))
    return found


def run(place: Place, name: str, folder: Path) -> dict[str, float]:
    """Do it twice, each in a program of its own: one for the time, one whose memory is looked at; return both."""
    seconds, _ = _measure(place, name, folder, looks=False)
    _, peak = _measure(place, name, folder, looks=True)
    return {"seconds": seconds, memory(name): peak}


def _measure(place: Place, name: str, folder: Path, *, looks: bool) -> tuple[float, float]:
    """Return the seconds without imports, and by how many MB the program's private memory grew at most."""
    imports, body = READERS[name]
    command = [sys.executable, "-c", PROGRAM.format(imports=imports, body=body), str(folder)]
    with subprocess.Popen(
        command, env=place.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        program.stdout.readline()
        watched = psutil.Process(program.pid)
        before = peak = watched.memory_full_info().uss
        program.stdin.write("\n")
        program.stdin.flush()
        ended = threading.Event()
        reader = threading.Thread(target=lambda: (said.append(program.stdout.readline()), ended.set()))
        said: list[str] = []
        reader.start()
        while not ended.wait(SAMPLE_SECONDS) and looks:
            peak = max(peak, watched.memory_full_info().uss)
        reader.join()
    return float(said[0]), (peak - before) / 1e6


def settle(place: Place) -> None:
    """Let the files come into the system's memory."""
    for side in sides(place)[:1]:
        side.run()
