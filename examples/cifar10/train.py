"""Train a small convolutional network; a training that was killed continues after its last finished epoch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
import yaml
from keras import layers

PATIENCE = 5  # epochs without a better loss on the validation images
SHIFT = 3  # pixels, at most


def batches(
    images: np.ndarray, classes: np.ndarray, size: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield shuffled, shifted images, epoch by epoch; seed and epoch alone decide, so a restart repeats them."""
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    while True:
        random = np.random.default_rng([seed, epoch])
        order, shifts = random.permutation(len(images)), random.integers(2 * SHIFT + 1, size=(len(images), 2))
        for chosen in order[: len(images) // size * size].reshape(-1, size):
            shifted = [padded[i, y : y + 32, x : x + 32] for i, (y, x) in zip(chosen, shifts[chosen], strict=True)]
            yield np.stack(shifted), classes[chosen]
        epoch += 1


def build(learning_rate: float) -> keras.Model:
    """Return the network. It has no random layers: Keras' backup does not hold their state."""
    model = keras.Sequential([layers.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(keras.optimizers.Adam(learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Train, and leave the best model, the curves, and the identifier of the run in MLflow."""
    params = yaml.safe_load(Path("params.yaml").read_text())["train"]
    keras.utils.set_random_seed(params["seed"])
    tf.config.experimental.enable_op_determinism()
    arrays = np.load("arrays.npz")
    images, classes = arrays["train_images"], arrays["train_classes"]
    first, size = int(len(images) * params["validation_split"]), params["batch_size"]

    # What a killed training left counts only for the same parameters and images.
    key = hashlib.sha256(json.dumps(params).encode() + Path("arrays.npz").read_bytes()).hexdigest()[:16]
    backup = Path("backup", key)
    curves, run_file, state = (backup / name for name in ("training.csv", "mlflow_run", "keras/training_metadata.json"))
    if state.exists():
        done = json.loads(state.read_text())["epoch"]
        past = pd.read_csv(curves).head(done)
        past.to_csv(curves, index=False)
        print(f"Continuing after epoch {done} of at most {params['max_epochs']}")
    else:
        done, past = 0, pd.DataFrame({"val_loss": []})
        for folder in ("backup", "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
        backup.mkdir(parents=True)

    stopping = keras.callbacks.EarlyStopping(patience=PATIENCE, verbose=1)

    def count_finished_epochs(_: dict | None) -> None:
        for epoch, loss in enumerate(past["val_loss"]):
            stopping.on_epoch_end(epoch, {"val_loss": loss})

    mlflow.set_experiment("cifar10")
    with mlflow.start_run(run_id=run_file.read_text() if run_file.exists() else None) as run:
        run_file.write_text(run.info.run_id)
        mlflow.log_params(params)
        build(params["learning_rate"]).fit(
            batches(images[first:], classes[first:], size, params["seed"], done),
            steps_per_epoch=(len(images) - first) // size,
            validation_data=(images[:first], classes[:first]),
            epochs=params["max_epochs"],
            shuffle=False,
            callbacks=[
                stopping,
                keras.callbacks.LambdaCallback(on_train_begin=count_finished_epochs),
                keras.callbacks.ModelCheckpoint(
                    backup / "best.keras",
                    save_best_only=True,
                    initial_value_threshold=past["val_loss"].min() if done else None,
                ),
                keras.callbacks.CSVLogger(curves, append=bool(done)),
                keras.callbacks.TensorBoard("tensorboard"),
                mlflow.keras.MlflowCallback(),
                keras.callbacks.BackupAndRestore(backup / "keras", double_checkpoint=True),  # the last: it says "done"
            ],
        )
        mlflow.log_artifact(backup / "best.keras")
    for source, target in ((backup / "best.keras", "model.keras"), (curves, curves.name), (run_file, run_file.name)):
        source.replace(target)
    shutil.rmtree("backup")


if __name__ == "__main__":
    main()
