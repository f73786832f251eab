"""Importing the package costs next to nothing."""

from __future__ import annotations

import subprocess
import sys


def test_import_loads_no_mlflow_and_names_are_there():
    """`import mlflow_gate` loads neither MLflow nor SciPy; each public name is there when it is used."""
    program = (
        "import sys, mlflow_gate; print({'mlflow', 'pandas', 'pydantic', 'scipy'} & set(sys.modules)); "
        "print(all(hasattr(mlflow_gate, name) for name in mlflow_gate.__all__), hasattr(mlflow_gate, 'Unknown'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nTrue False\n"
