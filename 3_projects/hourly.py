"""Code shared by the projects: reading and splitting the data, scoring predictions, parsing parameters.

This module imports only packages that every `python_env.yaml` lists, and nothing from this repository.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEATURES = ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
TARGETS = ["solar_GW", "wind_GW"]
CAPACITIES = ["solar_capacity_GW", "wind_capacity_GW"]
FACTORS = ["solar_capacity_factor", "wind_capacity_factor"]


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the `--data` option; the parser exits with code 2 on an invalid value."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--data", default="../germany.csv", help="the processed CSV file")
    return parser


def make_training_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all training scripts share."""
    parser = make_parser(description)
    parser.add_argument("--test_fraction", type=fraction, default=0.2, help="share of hours to hold out at the end")
    return parser


def boolean(text: str) -> bool:
    """Parse ``true`` or ``false``, ignoring case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() == "true"


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return a function that parses an integer between ``minimum`` and ``maximum``."""
    allowed = f"of at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= minimum and (maximum is None or int(text) <= maximum):
                return int(text)
        raise argparse.ArgumentTypeError(f"{text} is not a whole number {allowed}")

    return parse


positive = integer(1)
seed = integer(0, 2**32 - 1)  # the seeds that NumPy accepts


def fraction(text: str) -> float:
    """Return ``text`` as a number strictly between 0 and 1."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1")


def stop(message: str, exit_code: int) -> NoReturn:
    """Print ``message`` to stderr and exit with ``exit_code``."""
    print(message, file=sys.stderr)
    raise SystemExit(exit_code)


def require_tracking_server() -> None:
    """Exit with code 2 unless a tracking server is set: without one, the run would be logged to a local file."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        stop(
            f"No tracking server is set in this terminal: the run would be logged to {uri or 'a file in this folder'}. "
            'Run in the repository root: eval "$(.venv/bin/workshop config --export)"',
            2,
        )


def read_frame(path: str, *, with_capacity: bool = False) -> pd.DataFrame:
    """Return the rows of a processed CSV file, sorted by time; exit with code 1 if the file is missing or invalid.

    Columns: `utc_timestamp` (text), windspeed (m/s), temperature (deg C), radiation (W/m2), power (GW) and, if
    ``with_capacity`` is true, the installed capacity (GW), which some files lack.
    """
    import pandas as pd

    file = Path(path).resolve()
    advice = "Run in the repository root: python -m forecast csv 3_projects/germany.csv"
    if not file.is_file():
        stop(f"There is no data file {file}. {advice}", 1)
    columns = [*FEATURES, *TARGETS, *(CAPACITIES if with_capacity else [])]
    try:
        frame = pd.read_csv(file, usecols=["utc_timestamp", *columns], dtype=dict.fromkeys(columns, float))
    except ValueError as error:
        stop(f"The data file {file} cannot be used: {error}. {advice}", 1)
    if frame.isna().any(axis=None):
        stop(f"The data file {file} has empty cells. {advice}", 1)
    return frame.sort_values("utc_timestamp", ignore_index=True)


def split_by_time(frame: pd.DataFrame, test_fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training and test rows: the test set is the last ``test_fraction`` of the hours.

    A random split would train the model on hours later than those it is scored on. In chapter 4,
    `forecast.table.split.split_by_time` splits at the same row.
    """
    cut = math.floor(len(frame) * (1 - test_fraction))
    train, test = frame[:cut], frame[cut:]
    if min(len(train), len(test)) < 2:
        stop(f"With {len(frame)} hours, a test_fraction of {test_fraction} leaves too few hours to train or test.", 2)
    return train, test


def capacity_factors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each hour's power divided by the installed capacity, in the `FACTORS` columns."""
    return (frame[TARGETS] / frame[CAPACITIES].to_numpy()).set_axis(FACTORS, axis="columns")


def score(measured, predicted):
    """Return R2 (overall, solar, wind) and, for solar and wind, mean absolute error, bias and lowest prediction in GW.

    Both frames have the `TARGETS` columns. The bias is the mean error, negative if the model predicts too little.
    Readers write this function themselves in chapter 2's first notebook.
    """
    from sklearn.metrics import mean_absolute_error, r2_score

    numbers = {"r2": r2_score(measured, predicted)}
    for name in ["solar", "wind"]:
        GW, predicted_GW = measured[f"{name}_GW"], predicted[f"{name}_GW"]
        numbers[f"r2_{name}"] = r2_score(GW, predicted_GW)
        numbers[f"mae_{name}"] = mean_absolute_error(GW, predicted_GW)
        numbers[f"bias_{name}"] = (predicted_GW - GW).mean()
        numbers[f"lowest_{name}"] = predicted_GW.min()
    return numbers


def evaluate(test: pd.DataFrame, predicted: np.ndarray, *, by_capacity: bool = False) -> dict[str, float]:
    """Return the `score` on ``test`` of the predictions, an array (hours, 2) with columns in `TARGETS` order.

    With ``by_capacity``, the predictions are capacity factors, which are multiplied by each hour's capacity.
    """
    import pandas as pd

    predicted_GW = predicted * test[CAPACITIES].to_numpy() if by_capacity else predicted
    return score(test[TARGETS], pd.DataFrame(predicted_GW, test.index, TARGETS))
