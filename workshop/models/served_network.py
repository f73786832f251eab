"""What `mlflow models serve` runs for a network that is given raw weather; MLflow copies it into the logged model.

https://mlflow.org/docs/latest/ml/model/models-from-code/
"""

import mlflow
import pandas as pd

from workshop.data.schema import TARGETS
from workshop.models.regressor import CapacityFactorNetwork


class ServedNetwork(mlflow.pyfunc.PythonModel):
    """Opens the network in Keras' safe mode and answers in GW."""

    def load_context(self, context):
        """Load the network that was logged."""
        import keras

        network = keras.saving.load_model(context.artifacts["network"], compile=False, safe_mode=True)
        self.model = CapacityFactorNetwork(network)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # noqa: ARG002 - as MLflow calls it
        """Return GW for each row of raw weather."""
        return pd.DataFrame(self.model.predict(model_input), index=model_input.index, columns=TARGETS)


mlflow.models.set_model(ServedNetwork())
