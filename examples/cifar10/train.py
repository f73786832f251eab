"""Train a convolutional network; a killed training run continues after its last finished epoch."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
import yaml
from keras import layers
from mlflow_gate import log_learned

MAX_SHIFT = 3  # pixels


def batches(
    images: np.ndarray, classes: np.ndarray, size: int, seed: int, epoch: int, *, flip: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of shuffled and shifted images from ``epoch`` on; each epoch's batches depend only on the seed."""
    padded = np.pad(images, ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0)), mode="edge")
    while True:
        random = np.random.default_rng([seed, epoch])
        order, shifts = random.permutation(len(images)), random.integers(2 * MAX_SHIFT + 1, size=(len(images), 2))
        for batch in order[: len(images) // size * size].reshape(-1, size):
            steps = np.where(random.random(size) < 0.5, -1, 1) if flip else np.ones(size, int)
            corners = zip(batch, shifts[batch], steps, strict=True)
            yield (
                np.stack([padded[i, y : y + 32, x : x + 32][:, ::step] for i, (y, x), step in corners]),
                classes[batch],
            )
        epoch += 1


# -- networks: no random layers, because Keras' backup does not include their state -----------------------------------
def convolve(x: keras.KerasTensor, filters: int, stride: int = 1) -> keras.KerasTensor:
    """Apply a 3 x 3 convolution and batch normalisation."""
    x = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def small(x: keras.KerasTensor) -> keras.KerasTensor:
    """Return the features after three convolutions."""
    for filters in (16, 32, 64):
        x = layers.MaxPooling2D()(layers.ReLU()(convolve(x, filters)))
    return layers.Flatten()(x)


def resnet20(x: keras.KerasTensor) -> keras.KerasTensor:
    """Return the features of a 20-layer residual network: https://arxiv.org/abs/1512.03385, section 4.2."""
    x = layers.ReLU()(convolve(x, 16))
    for filters in (16, 32, 64):
        for block in range(3):
            stride = 2 if filters > 16 and block == 0 else 1
            residual = convolve(layers.ReLU()(convolve(x, filters, stride)), filters)
            if stride == 2:  # shortcut without weights
                x = keras.ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (filters // 4, filters // 4)))
            x = layers.ReLU()(layers.add([x, residual]))
    return layers.GlobalAveragePooling2D()(x)


NETWORKS = {"small": small, "resnet20": resnet20}


def build(network: str, learning_rate: float, steps: int) -> keras.Model:
    """Return a compiled network from `NETWORKS`; ``steps`` is the length of the learning rate schedule."""
    inputs = layers.Input((32, 32, 3))
    features = NETWORKS[network](layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", dtype="float32")(features))
    optimizer = keras.optimizers.Adam(learning_rate)
    if network == "resnet20":
        rates = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        # Ten times the paper's weight decay: there momentum amplifies it tenfold, but Keras decays without momentum.
        optimizer = keras.optimizers.SGD(rates, momentum=0.9, weight_decay=1e-3)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def log_epoch(epoch: int, logs: dict[str, float]) -> None:
    """Log an epoch's metrics, prefixed with train_ or val_."""
    named = {name if name.startswith("val_") else f"train_{name}": value for name, value in logs.items()}
    mlflow.log_metrics(named, step=epoch)


def main() -> None:
    """Train the network; write the best model, the learning curves, and the MLflow run's id."""
    params = yaml.safe_load(Path("params.yaml").read_text())["train"]
    if params["network"] not in NETWORKS:
        sys.exit(f"params.yaml: network is {params['network']}; allowed: {', '.join(NETWORKS)}")
    keras.utils.set_random_seed(params["seed"])
    keras.config.set_dtype_policy(params["precision"])
    tf.config.experimental.enable_op_determinism()
    arrays = np.load("arrays.npz")
    images, classes = arrays["train_images"], arrays["train_classes"]
    first, size = int(len(images) * params["validation_split"]), params["batch_size"]
    steps = (len(images) - first) // size

    # Resume a killed training run only with the same parameters and images.
    key = hashlib.sha256(json.dumps(params).encode() + Path("arrays.npz").read_bytes()).hexdigest()[:16]
    backup = Path("backup", key)
    curves, run_file, state = (backup / name for name in ("training.csv", "mlflow_run", "keras/training_metadata.json"))
    if state.exists():
        epochs_done = json.loads(state.read_text())["epoch"]
        history = pd.read_csv(curves).head(epochs_done)
        history.to_csv(curves, index=False)
        print(f"Continuing after epoch {epochs_done} of at most {params['max_epochs']}")
    else:
        epochs_done, history = 0, pd.DataFrame({"val_loss": []})
        for folder in ("backup", "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
        backup.mkdir(parents=True)

    stopping = keras.callbacks.EarlyStopping(patience=params["patience"], verbose=1)

    def count_finished_epochs(_: dict | None) -> None:
        for epoch, loss in enumerate(history["val_loss"]):
            stopping.on_epoch_end(epoch, {"val_loss": loss})

    mlflow.set_experiment("cifar10")
    name = f"{params['network']}, learning rate {params['learning_rate']:g} ({key[:6]})"
    with mlflow.start_run(run_id=run_file.read_text() if run_file.exists() else None, run_name=name) as run:
        run_file.write_text(run.info.run_id)
        mlflow.log_params(params)
        log_learned(arrays["train_keys"])  # including the validation images
        build(params["network"], params["learning_rate"], steps * params["max_epochs"]).fit(
            batches(images[first:], classes[first:], size, params["seed"], epochs_done, flip=params["flip"]),
            steps_per_epoch=steps,
            validation_data=(images[:first], classes[:first]),
            epochs=params["max_epochs"],
            shuffle=False,
            callbacks=[
                stopping,
                keras.callbacks.LambdaCallback(on_train_begin=count_finished_epochs, on_epoch_end=log_epoch),
                keras.callbacks.ModelCheckpoint(
                    backup / "best.keras",
                    save_best_only=True,
                    initial_value_threshold=history["val_loss"].min() if epochs_done else None,
                ),
                keras.callbacks.CSVLogger(curves, append=bool(epochs_done)),
                keras.callbacks.TensorBoard("tensorboard"),
                keras.callbacks.BackupAndRestore(backup / "keras", double_checkpoint=True),  # last: marks epochs done
            ],
        )
    for source, target in ((backup / "best.keras", "model.keras"), (curves, curves.name), (run_file, run_file.name)):
        source.replace(target)
    shutil.rmtree("backup")


if __name__ == "__main__":
    main()
