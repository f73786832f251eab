"""Fit a random forest with solar elevation as an extra input, and log it in MLflow.

This is a colleague's project, which lists no requirements; `reproduce.ipynb` works out which packages it needs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).resolve().parent.parent))
import hourly  # in the parent folder, shared by the projects

if TYPE_CHECKING:
    import pandas as pd

INPUTS = [*hourly.FEATURES, "sun_elevation"]
MIDDLE_OF_GERMANY = (51.0, 10.4)  # latitude, longitude


def main() -> None:
    """Train a model and log it with its parameters and metrics."""
    parameters = vars(hourly.make_training_parser("Fit a random forest with solar elevation and log it.").parse_args())
    hourly.require_tracking_server()
    frame = hourly.read_frame(parameters["data"])
    frame = frame.assign(sun_elevation=elevation(frame["utc_timestamp"]))
    train, test = hourly.split_by_time(frame, parameters["test_fraction"])

    import mlflow
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(n_estimators=20, max_depth=10, random_state=0)
    model.fit(train[INPUTS], train[hourly.TARGETS])
    metrics = hourly.evaluate(test, model.predict(test[INPUTS]))
    with mlflow.start_run() as run:
        mlflow.log_params({name: value for name, value in parameters.items() if name not in run.data.params})
        mlflow.log_metrics(metrics)
        mlflow.sklearn.log_model(  # without `pip_requirements`, so that MLflow infers the packages
            model,
            name="model",
            input_example=train[INPUTS].head(3),
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )
    print(f"R2 {metrics['r2']:.3f} on the last {len(test)} hours; run {run.info.run_id}")


def elevation(utc_timestamp: pd.Series) -> pd.Series:
    """Return the solar elevation (degrees above the horizon) in the middle of Germany for each hour."""
    import pandas as pd
    import pvlib

    hours = pd.DatetimeIndex(pd.to_datetime(utc_timestamp, utc=True))
    positions = pvlib.solarposition.get_solarposition(hours, *MIDDLE_OF_GERMANY)
    return positions["elevation"].set_axis(utc_timestamp.index)


if __name__ == "__main__":
    main()
