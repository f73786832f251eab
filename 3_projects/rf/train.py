"""Fit a random forest to the weather and log it in MLflow.

The file stands alone: it needs what `python_env.yaml` names, and nothing else of this repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEATURES = ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
TARGETS = ["solar_GW", "wind_GW"]


def main() -> None:
    """Train one model and log it, with the parameters of the command line."""
    parameters = read_parameters()
    require_tracking_server()
    frame = read_frame(parameters["data"])
    train, test = split_by_time(frame, parameters["test_fraction"])

    import mlflow
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(
        n_estimators=parameters["n_estimators"],
        max_depth=parameters["max_depth"],
        random_state=parameters["seed"],
    ).fit(train[FEATURES], train[TARGETS])
    metrics = measure(test, model.predict(test[FEATURES]))
    with mlflow.start_run() as run:
        # `mlflow run` has logged its parameters already, as they were typed.
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        mlflow.log_metrics(metrics)
        mlflow.sklearn.log_model(
            model,
            name="model",
            signature=mlflow.models.infer_signature(train[FEATURES], train[TARGETS]),
            input_example=train[FEATURES].head(3),
            # Named, since MLflow would otherwise take seconds to find them out.
            pip_requirements=[f"{name}=={version(name)}" for name in ("pandas", "scikit-learn", "skops")],
            # A model file is opened only when it holds nothing but these types (and scikit-learn's plainer ones).
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )
    print(f"R2 {metrics['r2']:.3f} on the last {len(test)} hours; run {run.info.run_id}")


def read_parameters() -> dict[str, str | float]:
    """Return the parameters by name; end with exit code 2 when one is out of range."""
    parser = argparse.ArgumentParser(description="Fit a random forest and log it.", allow_abbrev=False)
    parser.add_argument("--data", default="../germany.csv", help="the processed CSV file")
    parser.add_argument("--test_fraction", type=fraction, default=0.2, help="the part held out, the latest in time")
    parser.add_argument("--n_estimators", type=positive, default=100, help="the number of trees")
    parser.add_argument("--max_depth", type=positive, default=10, help="the levels of a tree, at most")
    parser.add_argument("--seed", type=seed, default=0, help="the start of the random numbers")
    return vars(parser.parse_args())


def positive(text: str) -> int:
    """Return ``text`` as a whole number of at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def seed(text: str) -> int:
    """Return ``text`` as a whole number from 0 to 2**32 - 1, which is what NumPy takes for a seed."""
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return int(text)


# From here on the three projects' files are the same.
def fraction(text: str) -> float:
    """Return ``text`` as a number between 0 and 1, both left out."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def stop(sentence: str, exit_code: int) -> NoReturn:
    """End the program with ``sentence`` on stderr."""
    print(sentence, file=sys.stderr)
    raise SystemExit(exit_code)


def require_tracking_server() -> None:
    """End with exit code 2 when the run would go to a file of this folder and not to a server."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith(("http://", "https://")):
        stop(
            f"No tracking server is set: MLFLOW_TRACKING_URI is {address or 'empty'}, not an http address. "
            'Type at the top of the repository: eval "$(workshop config --export)"',
            2,
        )


def read_frame(path: str) -> pd.DataFrame:
    """Return the hours of a processed CSV file in the order of time; end with exit code 1 when it cannot be used.

    Columns: `utc_timestamp` (text), windspeed (m/s), temperature (deg C), radiation (W/m2), power (GW).
    """
    import pandas as pd

    file = Path(path).resolve()
    advice = "Type at the top of the repository: workshop data csv 3_projects/germany.csv"
    if not file.is_file():
        stop(f"There is no data file {file}. {advice}", 1)
    numbers = [*FEATURES, *TARGETS]
    try:
        frame = pd.read_csv(file, usecols=["utc_timestamp", *numbers], dtype=dict.fromkeys(numbers, float))
    except ValueError as error:
        stop(f"The data file {file} cannot be used: {error}. {advice}", 1)
    if frame.isna().any(axis=None):
        stop(f"The data file {file} has empty cells. {advice}", 1)
    return frame.sort_values("utc_timestamp", ignore_index=True)


def split_by_time(frame: pd.DataFrame, test_fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the earlier hours and the last ``test_fraction`` of them.

    Neighbouring hours are alike, so hours held out at random would flatter the model.
    """
    border = len(frame) - round(len(frame) * test_fraction)
    train, test = frame[:border], frame[border:]
    if min(len(train), len(test)) < 2:
        stop(f"Of {len(frame)} hours a test_fraction of {test_fraction} leaves too few to train or to test on.", 2)
    return train, test


def measure(test: pd.DataFrame, predicted: np.ndarray) -> dict[str, float]:
    """Return R2 (of solar, of wind, their mean) and the mean absolute error in GW; ``predicted`` is (hours, 2)."""
    from sklearn.metrics import mean_absolute_error, r2_score

    r2_solar, r2_wind = r2_score(test[TARGETS], predicted, multioutput="raw_values")
    return {
        "r2": (r2_solar + r2_wind) / 2,
        "r2_solar": r2_solar,
        "r2_wind": r2_wind,
        "mae_GW": mean_absolute_error(test[TARGETS], predicted),
    }


if __name__ == "__main__":
    main()
