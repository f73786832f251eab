"""The notebook of a year of decisions, executed on running servers."""

from __future__ import annotations

import json
import shutil

import mlflow
import nbformat
import pytest
from walk import run_in
from workplace import BIN

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

POLICIES = ["never retrain", "always replace", "gate", "gate with refit"]
RESULT = 'print(json.dumps({"words": list(year["words"]), "bias": overview["wind bias, %"].to_dict()}))'


@pytest.fixture
def executed(servers):
    """The executed notebook, with its decisions and the bias of each policy as JSON in the last output."""
    notebook = nbformat.read(servers.pipeline / "a_year.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(RESULT))
    try:
        yield run_in(servers.pipeline, notebook, servers.environment, seconds=1000)
    finally:
        shutil.rmtree(servers.pipeline / "a_year", ignore_errors=True)
        mlflow.MlflowClient(servers.tracking_uri).delete_registered_model("a_year")


@pytest.fixture
def status(servers):
    """The output of `mlflow-gate status` in the chapter's folder before the notebook runs."""
    return servers.run(BIN / "mlflow-gate", "status", cwd=servers.pipeline).stdout


def test_year_has_the_results_of_its_text(servers, status, executed):
    """The gate promotes and refuses; a refit brings the bias nearer to zero; the chapter's model is unchanged."""
    results = json.loads(executed.cells[-1].outputs[0].text)
    assert {words.partition(":")[0] for words in results["words"]} == {"promoted", "refused"}
    assert list(results["bias"]) == POLICIES
    assert abs(results["bias"]["gate with refit"]) < abs(results["bias"]["gate"])
    assert servers.run(BIN / "mlflow-gate", "status", cwd=servers.pipeline).stdout == status
