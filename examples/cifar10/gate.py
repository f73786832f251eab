"""The gate for `mlflow-gate`: accuracy may be at most `gate.max_drop` below the accuracy in the last commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from mlflow_gate import Gate, Registry, Scores


def held_out() -> pd.Series:
    """Return the test images' positions in `arrays.npz`, indexed by the images' keys."""
    keys = np.load("arrays.npz")["test_keys"]
    return pd.Series(range(len(keys)), keys)


def evaluate(model, indices: pd.Series) -> Scores:
    """Score a model on the test images at these positions in `arrays.npz`."""
    arrays = np.load("arrays.npz")
    images, classes = arrays["test_images"][indices], arrays["test_classes"][indices]
    return Scores({"accuracy": (model.predict(images).argmax(axis=1) == classes).mean()})


def rules() -> dict[str, dict]:
    """Return a rule for an accuracy of at least HEAD's minus `max_drop`; none if `metrics.json` is not in HEAD."""
    committed = subprocess.run(["git", "show", "HEAD:./metrics.json"], capture_output=True, text=True, check=False)
    if committed.returncode:
        return {}
    old, gate = json.loads(committed.stdout)["accuracy"], yaml.safe_load(Path("params.yaml").read_text())["gate"]
    next_step = "change max_drop in params.yaml, or overrule the gate in CI with a reason in ACCEPT_WORSE"
    return {"accuracy": {"min": old - gate["max_drop"], "name": f"accuracy, {old:.3f} in HEAD", "next_step": next_step}}


gate = Gate(Registry("cifar10"), evaluate, held_out, rules(), candidate="candidate.json")
