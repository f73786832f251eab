"""Train a small convolutional network; a training that was killed continues from its last finished epoch."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import yaml
from keras import layers

PATIENCE = 5  # epochs without a better loss on the validation images


class Batches(keras.utils.PyDataset):
    """Shuffled batches of an epoch; the order depends on seed and epoch alone, so it is the same after a restart."""

    def __init__(self, images: np.ndarray, classes: np.ndarray, size: int, seed: int, epoch: int) -> None:
        super().__init__()
        self.images, self.classes, self.size, self.seed, self.epoch = images, classes, size, seed, epoch

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.images))
        chosen = order[index * self.size : (index + 1) * self.size]
        return self.images[chosen], self.classes[chosen]

    def on_epoch_end(self) -> None:
        """Take another order."""
        self.epoch += 1


class EarlyStopping(keras.callbacks.EarlyStopping):
    """Keras' own, which remembers the epochs before a restart."""

    def __init__(self, past: pd.DataFrame) -> None:
        super().__init__(patience=PATIENCE, verbose=1)
        self.past = past

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Count the epochs that are finished already."""
        super().on_train_begin(logs)
        for epoch, loss in enumerate(self.past["val_loss"]):
            self.on_epoch_end(epoch, {"val_loss": loss})


class SeededEpochs(keras.callbacks.Callback):
    """Seeds shifts, zooms and dropout by the epoch: a backup holds the weights, but not the state of random layers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002 - as in Keras
        """Set the state of each random layer: seed and counter."""
        states = [variable for variable in self.model.variables if variable.name == "seed_generator_state"]
        for number, state in enumerate(states):
            state.assign([self.seed + number, epoch * 1_000_000])


def build(seed: int, learning_rate: float) -> keras.Model:
    """Return the network; its first layers shift and zoom the training images at random."""
    model = keras.Sequential([layers.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
    model.add(layers.RandomTranslation(0.1, 0.1, seed=seed))
    model.add(layers.RandomZoom(0.1, seed=seed))
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.3, seed=seed))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(keras.optimizers.Adam(learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Train, and leave the best model, the curves, and the number of the run in MLflow."""
    params = yaml.safe_load(Path("params.yaml").read_text())["train"]
    keras.utils.set_random_seed(params["seed"])
    arrays = np.load("arrays.npz")
    images, classes = arrays["train_images"], arrays["train_classes"]
    first = int(len(images) * params["validation_split"])

    # What a killed training left counts only for the same parameters and images.
    key = hashlib.sha256(json.dumps(params).encode() + Path("arrays.npz").read_bytes()).hexdigest()[:16]
    backup = Path("backup", key)
    state = backup / "keras" / "training_metadata.json"
    if not state.exists():
        for folder in ("backup", "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
        backup.mkdir(parents=True)
    done = json.loads(state.read_text())["epoch"] if state.exists() else 0
    past = pd.read_csv(backup / "training.csv").head(done) if done else pd.DataFrame({"val_loss": []})
    if done:
        past.to_csv(backup / "training.csv", index=False)
        print(f"Continuing after epoch {done} of at most {params['max_epochs']}")

    run_file = backup / "mlflow_run"
    with mlflow.start_run(run_id=run_file.read_text() if run_file.exists() else None) as run:
        run_file.write_text(run.info.run_id)
        mlflow.log_params(params)
        model = build(params["seed"], params["learning_rate"])
        model.fit(
            Batches(images[first:], classes[first:], params["batch_size"], params["seed"], done),
            validation_data=(images[:first], classes[:first]),
            epochs=params["max_epochs"],
            callbacks=[
                SeededEpochs(params["seed"]),
                EarlyStopping(past),
                keras.callbacks.ModelCheckpoint(
                    backup / "best.keras",
                    save_best_only=True,
                    initial_value_threshold=past["val_loss"].min() if done else None,
                ),
                keras.callbacks.CSVLogger(backup / "training.csv", append=bool(done)),
                keras.callbacks.TensorBoard("tensorboard"),
                mlflow.keras.MlflowCallback(),
                keras.callbacks.BackupAndRestore(backup / "keras", double_checkpoint=True),  # the last: it says "done"
            ],
        )
        mlflow.log_artifact(backup / "best.keras")
    (backup / "best.keras").replace("model.keras")
    (backup / "training.csv").replace("training.csv")
    run_file.replace("mlflow_run")
    shutil.rmtree("backup")


if __name__ == "__main__":
    main()
