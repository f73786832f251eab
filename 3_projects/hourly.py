"""What the three projects share: the hours, how they are split and measured, and which parameters all have.

Like the projects it needs what their `python_env.yaml` name, and nothing else of this repository.
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
    """Return a parser of where the data is; a value out of range ends it with exit code 2."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--data", default="../germany.csv", help="the processed CSV file")
    return parser


def make_training_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the parameters that every training has."""
    parser = make_parser(description)
    parser.add_argument("--test_fraction", type=fraction, default=0.2, help="the part held out, the latest in time")
    return parser


def truth(text: str) -> bool:
    """Return ``text`` as true or false."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() == "true"


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a function that reads a whole number of at least ``least`` and at most ``most``."""
    allowed = f"of at least {least}" if most is None else f"between {least} and {most}"

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if int(text) >= least and (most is None or int(text) <= most):
                return int(text)
        raise argparse.ArgumentTypeError(f"{text} is not a whole number {allowed}")

    return read


positive = whole(1)
seed = whole(0, 2**32 - 1)  # as NumPy has it


def fraction(text: str) -> float:
    """Return ``text`` as a number between 0 and 1, both left out."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1")


def stop(sentence: str, exit_code: int) -> NoReturn:
    """End the program with ``sentence`` on stderr."""
    print(sentence, file=sys.stderr)
    raise SystemExit(exit_code)


def require_tracking_server() -> None:
    """End with exit code 2 when the run would go to a file of this folder and not to a server."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith(("http://", "https://")):
        stop(
            f"No tracking server is set in this terminal, so the run would go to {address or 'a file of this folder'}. "
            'Type at the top of the repository: eval "$(.venv/bin/workshop config --export)"',
            2,
        )


def read_frame(path: str, *, with_capacity: bool = False) -> pd.DataFrame:
    """Return the hours of a processed CSV file in the order of time; end with exit code 1 when it cannot be used.

    Columns: `utc_timestamp` (text), windspeed (m/s), temperature (deg C), radiation (W/m2), power (GW), and on request
    the installed capacity (GW), which not every such file has.
    """
    import pandas as pd

    file = Path(path).resolve()
    advice = "Type at the top of the repository: python -m forecast csv 3_projects/germany.csv"
    if not file.is_file():
        stop(f"There is no data file {file}. {advice}", 1)
    numbers = [*FEATURES, *TARGETS, *(CAPACITIES if with_capacity else [])]
    try:
        frame = pd.read_csv(file, usecols=["utc_timestamp", *numbers], dtype=dict.fromkeys(numbers, float))
    except ValueError as error:
        stop(f"The data file {file} cannot be used: {error}. {advice}", 1)
    if frame.isna().any(axis=None):
        stop(f"The data file {file} has empty cells. {advice}", 1)
    return frame.sort_values("utc_timestamp", ignore_index=True)


def split_by_time(frame: pd.DataFrame, test_fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the earlier hours and the last ``test_fraction`` of them.

    With hours held out at random, the model would have learned later hours than those that it is scored on. The border
    is that of chapter 4's `forecast.table.split`.
    """
    border = math.floor(len(frame) * (1 - test_fraction))
    train, test = frame[:border], frame[border:]
    if min(len(train), len(test)) < 2:
        stop(f"Of {len(frame)} hours a test_fraction of {test_fraction} leaves too few to train or to test on.", 2)
    return train, test


def capacity_factors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the power of each hour divided by the installed capacity; the columns are `FACTORS`."""
    return (frame[TARGETS] / frame[CAPACITIES].to_numpy()).set_axis(FACTORS, axis="columns")


def score(measured, predicted):
    """Return R2 (of both, of solar, of wind), mean absolute error, mean error (bias) and lowest prediction, in GW.

    It is the function that chapter 2 writes in its first notebook. Both tables have the columns `TARGETS`; a negative
    bias means that too little is predicted.
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


def measure(test: pd.DataFrame, predicted: np.ndarray, *, by_capacity: bool = False) -> dict[str, float]:
    """Return the `score` of what a model predicts for the hours of ``test``, (hours, 2), in the order of `TARGETS`.

    With ``by_capacity`` it predicts capacity factors: they are multiplied by the capacity of each hour.
    """
    import pandas as pd

    predicted_GW = predicted * test[CAPACITIES].to_numpy() if by_capacity else predicted
    return score(test[TARGETS], pd.DataFrame(predicted_GW, test.index, TARGETS))
