"""Time the report of a week, and the keys of training rows, for 35,000 and for 350,000 hours.

`python -m benchmarks.growth TASK ROWS` runs in the pipeline's folder and prints the seconds of one task.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
from forecast.govern import gate
from forecast.show import report
from forecast.table import processed
from mlflow_gate.keys import Keys, hash_rows

from benchmarks.clone import Clone
from benchmarks.measure import Side
from benchmarks.table import Row
from benchmarks.whole_pipeline import run as run_pipeline

TITLE = "Ten times the rows"
FEW, MANY = 35_000, 350_000
TASKS = {"report": "weekly report", "keys": "row keys, hash"}


def _name(task: str, rows: int) -> str:
    return f"{TASKS[task]}, {rows:,} hours"


ROWS = tuple(Row(f"ten times the rows: {TASKS[task]}", _name(task, MANY), _name(task, FEW)) for task in TASKS)


def sides(clone: Clone) -> list[Side]:
    """Return a side for each task and number of rows; a model is in production."""
    run_pipeline(clone, "workshop")
    variables = clone.environment | {"PYTHONPATH": str(clone.root)}

    def measure(task: str, rows: int) -> float:
        command = ("python", "-m", "benchmarks.growth", task, str(rows))
        return float(clone.do(*command, cwd=clone.pipeline, environment=variables).split()[-1])

    return [
        Side(_name(task, rows), lambda task=task, rows=rows: measure(task, rows))
        for task in TASKS
        for rows in (FEW, MANY)
    ]


def main() -> None:
    """Run one task on the table, repeated to a number of rows; print the seconds."""
    task, rows = sys.argv[1], int(sys.argv[2])
    germany = processed.read("data/germany.parquet")
    table = germany.iloc[np.arange(-rows, 0) % len(germany)].reset_index(drop=True)
    table["utc_timestamp"] = pd.date_range(end=germany["utc_timestamp"].iloc[-1], periods=rows, freq="h")
    for capacity in table.filter(like="_capacity"):
        table[capacity] = np.sort(table[capacity])
    production = gate.Registry().production()
    start = time.perf_counter()
    if task == "keys":
        held_out = table.set_index("utc_timestamp")
        hash_rows(held_out, Keys.of(held_out))
    else:
        data = report.collect(table, production, "latest")
        week = data.of_week("latest")
        misses = report.worst_hours(data, week)
        report.summary(data, week), report.totals(data, week), report.draw(data, week, misses)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
