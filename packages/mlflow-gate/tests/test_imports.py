"""Importing the package costs next to nothing."""

from __future__ import annotations

import subprocess
import sys


def test_import_is_fast_and_loads_no_mlflow():
    """`import mlflow_gate` takes less than 0.1 s, and loads neither MLflow nor SciPy."""
    program = (
        "import time, sys; began = time.perf_counter(); import mlflow_gate; "
        "print(time.perf_counter() - began, *{'mlflow', 'pandas', 'pydantic', 'scipy'} & set(sys.modules))"
    )
    answers = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert min(float(answer[0]) for answer in answers) < 0.1
    assert [answer[1:] for answer in answers] == [[], [], []]


def test_public_names_can_be_imported():
    """Each name in `__all__` exists; another one is an AttributeError."""
    import mlflow_gate

    assert all(getattr(mlflow_gate, name).__module__.startswith("mlflow_gate.") for name in mlflow_gate.__all__)
    assert not hasattr(mlflow_gate, "Unknown")
