"""Evaluate the model on the test images and log it with the metrics, the confusion matrix and the hardest images."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure
from mlflow.models import infer_signature
from mlflow_gate import log_learned
from sklearn.metrics import ConfusionMatrixDisplay

WORST = 12

arrays = np.load("arrays.npz")
images, classes, names = arrays["test_images"], arrays["test_classes"], arrays["names"]
model = keras.saving.load_model("model.keras")  # Keras' safe mode, the default, runs no code from the file
probabilities = model.predict(images, batch_size=256)
predicted = probabilities.argmax(axis=1)
true_probabilities = probabilities[np.arange(len(classes)), classes]

metrics = {
    "accuracy": float((predicted == classes).mean()),
    "loss": float(-np.log(np.maximum(true_probabilities, 1e-7)).mean()),
    "mistakes": int((predicted != classes).sum()),
}
Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
pd.DataFrame({"actual": names[classes], "predicted": names[predicted]}).to_csv("predictions.csv", index=False)

mistakes = Figure(figsize=(6, 5.4), layout="constrained")
for axis, index in zip(mistakes.subplots(3, WORST // 3).flat, true_probabilities.argsort()[:WORST], strict=True):
    axis.imshow(images[index])
    is_wrong = predicted[index] != classes[index]
    prediction = f"predicted {names[predicted[index]]} ({probabilities[index].max():.0%})"
    axis.set_title(f"{names[classes[index]]}, {prediction}", size=8, color="red" if is_wrong else "black")
    axis.axis("off")
mistakes.suptitle(f"The {WORST} hardest of {len(classes)} test images, mistakes in red ({metrics['mistakes']} in all)")
mistakes.savefig("mistakes.png", dpi=100)

curves, confusion = (Figure(figsize=(6, 5.4), layout="constrained") for _ in range(2))
pd.read_csv("training.csv").plot(x="epoch", y=["loss", "val_loss"], ax=curves.subplots())
ConfusionMatrixDisplay.from_predictions(
    names[classes], names[predicted], ax=confusion.subplots(), colorbar=False, xticks_rotation=45
)

mlflow.set_experiment("cifar10")
try:
    run = mlflow.start_run(run_id=Path("mlflow_run").read_text())
except mlflow.MlflowException:  # the training run is on another tracking server
    run = mlflow.start_run()
    log_learned(arrays["train_keys"])
with run:
    mlflow.log_metrics({f"test_{name}": value for name, value in metrics.items()})
    for figure, name in ((mistakes, "mistakes"), (curves, "learning_curves"), (confusion, "confusion")):
        mlflow.log_figure(figure, f"{name}.png")
    mlflow.log_artifact("predictions.csv")
    logged = mlflow.keras.log_model(
        model,
        name="model",
        signature=infer_signature(images[:1], probabilities[:1]),
        pip_requirements=[f"keras=={keras.__version__}", f"tensorflow=={tf.__version__}"],
    )
Path("candidate.json").write_text(json.dumps({"run_id": run.info.run_id, "model_uri": logged.model_uri}) + "\n")
print(f"Accuracy on {len(classes)} test images: {metrics['accuracy']:.3f} ({metrics['mistakes']} mistakes)")
