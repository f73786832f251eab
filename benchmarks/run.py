"""The command line: which benchmarks, how often; writes the results and the table."""

from __future__ import annotations

import datetime
import signal
import sys
from pathlib import Path

import click

from benchmarks import (
    artifacts,
    dashboard,
    kernel,
    models,
    pipeline,
    prepare,
    printing,
    report,
    single,
    throughput,
    tiny,
    tracking,
    unchanged,
)
from benchmarks.measure import measure, run_once
from benchmarks.place import open_place

BENCHMARKS = {
    "pipeline": pipeline,
    "unchanged": unchanged,
    "tiny": tiny,
    "single": single,
    "kernel": kernel,
    "throughput": throughput,
    "printing": printing,
    "artifacts": artifacts,
    "tracking": tracking,
    "models": models,
    "prepare": prepare,
    "dashboard": dashboard,
}
RESULTS = report.FOLDER / "results.json"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="How often each side runs.")
@click.option(
    "--results",
    default=RESULTS,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the figures are kept; README.md is left alone when it is not the usual file.",
)
@click.option("--table-only", is_flag=True, help="Measure nothing; write the table of what is kept.")
def main(names: tuple[str, ...], runs: int, results: Path, table_only: bool) -> None:
    """Measure the engine against the plain way: all benchmarks, or those of these NAMES.

    \b
    Example:  python -m benchmarks.run tiny single --runs 5
    """
    # Terminated, too, it stops its servers before it ends.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    kept = report.read_results(results)
    if not table_only:
        with open_place() as place:
            for name in names or BENCHMARKS:
                kept[name] = _measure(name, place, runs)
                report.write_results(results, kept)
    text = report.table(kept, BENCHMARKS)
    if results == RESULTS:
        report.write_table(text)
    click.echo(text)


def _measure(name: str, place, runs: int) -> dict:
    """Run one benchmark; return its figures and the circumstances."""
    benchmark = BENCHMARKS[name]
    click.echo(benchmark.TITLE, err=True)
    place.wait_until_warm()
    sides = benchmark.sides(place)
    # Once before it counts: all sides, or what a benchmark says is enough.
    settle = getattr(benchmark, "settle", lambda _: run_once(sides))
    settle(place)
    samples = measure(sides, runs, lambda line: click.echo(f"  {line}", err=True))
    about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": report.machine(), "runs": runs}
    return about | samples.as_dict()


if __name__ == "__main__":
    main()
