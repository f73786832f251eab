"""The gate of `mlflow-gate`: the accuracy may drop by at most `gate.max_drop` against the last commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from mlflow_gate import Gate, Registry, Scores


def held_out() -> pd.Series:
    """Return the index of each test image in `arrays.npz`, by its key."""
    keys = np.load("arrays.npz")["test_keys"]
    return pd.Series(range(len(keys)), keys)


def evaluate(model, places: pd.Series) -> Scores:
    """Score a model on test images."""
    arrays = np.load("arrays.npz")
    images, classes = arrays["test_images"][places], arrays["test_classes"][places]
    return Scores({"accuracy": (model.predict(images).argmax(axis=1) == classes).mean()})


def rules() -> dict[str, dict]:
    """Return the minimum accuracy, the committed one less `max_drop`; no rule before the first commit."""
    committed = subprocess.run(["git", "show", "HEAD:./metrics.json"], capture_output=True, text=True, check=False)
    if committed.returncode:
        return {}
    old, gate = json.loads(committed.stdout)["accuracy"], yaml.safe_load(Path("params.yaml").read_text())["gate"]
    step = "max_drop is in params.yaml; a reason in ACCEPT_WORSE makes the job overrule the gate"
    return {"accuracy": {"min": old - gate["max_drop"], "name": f"accuracy, {old:.3f} in HEAD", "next_step": step}}


gate = Gate(Registry("cifar10"), evaluate, held_out, rules(), candidate="candidate.json")
