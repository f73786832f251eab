"""The command line: run benchmarks, and write the results and the table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import sys
import timeit
from pathlib import Path

import click

from benchmarks import artifacts, growth, idle, serving, small_notebooks, whole_pipeline
from benchmarks.clone import Clone, running_clone
from benchmarks.measure import measure, run_each_once
from benchmarks.table import table, write_table

BENCHMARKS = {
    "pipeline": whole_pipeline,
    "notebooks": small_notebooks,
    "artifacts": artifacts,
    "serving": serving,
    "idle": idle,
    "growth": growth,
}
ADDITIONS = 10_000_000  # iterations of a loop that is timed to show the machine's speed
RESULTS = Path(__file__).with_name("results.json")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs per side.")
@click.option("--table-only", is_flag=True, help="Write the table from results.json without measuring.")
def main(names: tuple[str, ...], runs: int, table_only: bool) -> None:
    """Compare this repository with standard tools: run all benchmarks, or the given NAMES.

    \b
    Example:  python -m benchmarks.run notebooks --runs 5
    """
    # Also stop the servers on SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not table_only:
        with running_clone() as clone:
            for name in names or BENCHMARKS:
                results[name] = _measure(name, clone, runs)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = table(results, BENCHMARKS)
    write_table(text)
    click.echo(text)


def _measure(name: str, clone: Clone, runs: int) -> dict:
    """Run one benchmark; return its figures, date and machine."""
    benchmark = BENCHMARKS[name]
    click.echo(benchmark.TITLE, err=True)
    clone.wait_until_warm()
    sides = benchmark.sides(clone)
    # If the benchmark has no `warm_up` function, run each side once, untimed.
    getattr(benchmark, "warm_up", lambda _: run_each_once(sides))(clone)
    additions = min(timeit.repeat("i += 1", "i = 0", number=ADDITIONS, repeat=3))
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, {additions:.2f} s"
    about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": machine, "runs": runs}
    return about | measure(sides, runs, lambda line: click.echo(f"  {line}", err=True))


if __name__ == "__main__":
    main()
