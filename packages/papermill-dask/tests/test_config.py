"""What a notebook may ask for, and who says so."""

from __future__ import annotations

import subprocess
import sys

import dask.config
import pytest
from papermill_dask import EngineError, NotebookOptions
from programs import clean_environment


def test_options_are_those_of_the_first_that_says_so():
    """A keyword wins over Dask's configuration, that over the notebook's metadata, and that over the default."""
    metadata = {"memory": "2 GiB", "retries": 1, "worker": "alpha"}
    with dask.config.set({"papermill-dask.retries": 2, "papermill-dask.worker": "beta"}):
        options = NotebookOptions.of(metadata, {"worker": "gamma"})
    assert (options.memory, options.retries, options.worker) == (2 * 2**30, 2, "gamma")
    assert (options.deps, options.resources, options.max_output) == (None, {}, None)


def test_options_are_read_from_text():
    """Lists by commas, resources as NAME=AMOUNT, sizes with units: as in variables of the environment."""
    options = NotebookOptions.of({}, {"deps": "a, b/c", "resources": "GPU=1,TPU=0.5", "max_output": "5 MB"})
    assert (options.deps, options.resources) == (["a", "b/c"], {"GPU": 1.0, "TPU": 0.5})
    assert options.max_output == 5_000_000


@pytest.mark.parametrize(("option", "value"), [("retries", -1), ("memory", "much"), ("resources", "GPU"), ("dep", "a")])
def test_options_that_make_no_sense_are_refused(option, value):
    """An option that is unknown or cannot be read is named, with its value."""
    with pytest.raises(EngineError, match=f"option `{option}` cannot be used") as caught:
        NotebookOptions.of({}, {option: value})
    assert str(value) in str(caught.value)


def test_options_come_from_the_environment_as_dasks_own_do():
    """`DASK_PAPERMILL_DASK__<OPTION>` is read by Dask itself."""
    program = "import papermill_dask as p; o = p.NotebookOptions.of({}, {}); print(o.max_output, o.deps, o.retries)"
    variables = {"MAX_OUTPUT": "5 MB", "DEPS": "['a']", "RETRIES": "3"}
    environment = clean_environment() | {f"DASK_PAPERMILL_DASK__{name}": value for name, value in variables.items()}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "5000000 ['a'] 3\n"


def test_public_names_are_there_and_load_nothing_before_they_are_used():
    """Each name of `__all__` can be imported; importing the package alone imports no Dask and no papermill."""
    program = (
        "import sys, papermill_dask as p; print({'dask', 'papermill', 'mlflow'} & set(sys.modules)); "
        "print([name for name in p.__all__ if not hasattr(p, name)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n[]\n"
