"""Options: precedence, validation and documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dask.config
import pytest
from papermill_dask import EngineError
from papermill_dask.config import OPTIONS, SECTION, NotebookOptions


def test_options_precedence():
    """Keywords override Dask's configuration, which overrides the notebook's metadata, which override defaults."""
    metadata = {"outs": "x", "retries": 1, "deps": "alpha"}
    with dask.config.set({"papermill-dask.retries": 2, "papermill-dask.deps": "beta"}):
        options = NotebookOptions.resolve(metadata, {"deps": "gamma"})
    assert (options.outs, options.retries, options.deps) == (["x"], 2, ["gamma"])
    assert (options.environment, options.resources) == ([], {})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("retries", -1),
        ("retries", "many"),
        ("resources", "GPU"),
        ("retries", float("inf")),
        ("dep", "a"),
        ("skip_tags", "slow, injected-parameters"),
    ],
)
def test_invalid_options_are_errors(option, value):
    """The error for an unknown option or an invalid value names both."""
    with pytest.raises(EngineError, match=f"Invalid notebook option `{option}`") as caught:
        NotebookOptions.resolve({}, {option: value})
    assert str(value) in str(caught.value)


def test_options_are_documented():
    """README and `papermill_dask.yaml` have each option."""
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    assert [name for name in OPTIONS if f"`{name}`" not in readme] == []
    assert {name.replace("_", "-") for name in OPTIONS} <= dask.config.get(SECTION).keys()


def test_public_names_are_imported_lazily():
    """Each name of `__all__` can be imported; importing only the package imports neither Dask nor papermill."""
    program = (
        "import sys, papermill_dask as p; print({'dask', 'papermill', 'mlflow'} & set(sys.modules)); "
        "print([name for name in p.__all__ if not hasattr(p, name)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n[]\n"
