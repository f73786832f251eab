"""What `mlflow models serve` runs for a network that is given raw weather; MLflow copies this file into the model.

https://mlflow.org/docs/latest/ml/model/models-from-code/
"""

import json
from pathlib import Path

import mlflow
import pandas as pd

from workshop.data.schema import TARGETS
from workshop.models.regressor import CapacityFactorNetwork


class ServedNetwork(mlflow.pyfunc.PythonModel):
    """Opens the network in Keras' safe mode and answers in GW."""

    def load_context(self, context):
        """Load the network that was logged, and the figures of capacity that it learned with."""
        import keras

        network = keras.saving.load_model(context.artifacts["network"], compile=False, safe_mode=True)
        year_ends = json.loads(Path(context.artifacts["capacity"]).read_text())
        self.model = CapacityFactorNetwork(network, year_ends)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # noqa: ARG002 - as MLflow calls it
        """Return GW for each row of raw weather."""
        return pd.DataFrame(self.model.predict(model_input), index=model_input.index, columns=TARGETS)


mlflow.models.set_model(ServedNetwork())
