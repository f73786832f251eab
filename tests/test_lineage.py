"""The lineage of the models of a clone in which the pipeline ran."""

from __future__ import annotations

import contextlib
import json

import pytest
from forecast import problem
from forecast.learn.gate import KINDS, Registry
from forecast.tracking import connect
from mlflow_gate import ConfigError, Decision, ModelError, Scores


@pytest.fixture
def of_the_pipeline(in_workplace, monkeypatch):
    """The name of a registered model of this test's own, on the servers of a clone in which the pipeline ran."""
    name = "a_model_of_its_own"
    monkeypatch.setattr(problem, "REGISTERED_MODEL", name)
    yield name
    connect().delete_registered_model(name)


def pipeline_model(place, stage: str = "train_rf") -> tuple[str, str]:
    """Return the run and the address of a model that the pipeline logged."""
    trained = json.loads((place.pipeline / "results" / f"{stage}.json").read_text())
    return trained["run_id"], trained["model_uri"]


def test_lineage_leads_from_the_data_to_the_alias(in_workplace):
    """Every link of the model in production is known, and holds."""
    gate = Registry()
    links = gate.verify(gate.lineage())
    assert [link.kind for link in links] == list(KINDS)
    assert [link.name for link in links if link.trouble or not link.known] == []
    facts = {link.kind: link.facts for link in links}
    hashes = {f"md5 of data/{name}" for name in ("train.parquet", "validation.parquet")}
    assert hashes <= facts["data"].keys()
    assert facts["data"]["source"] == "modelled sample"
    assert ", 2013-01-01T00:00:00Z to 2016-" in facts["data"]["learned"]
    assert facts["stage"]["coverage"] == "0.8"
    assert facts["commit"]["uncommitted changes"] == "no"
    assert facts["environment"]["scikit-learn"]
    version = gate.production().version
    assert gate.lineage(facts["run"]["id"])[-3:] == gate.lineage(f"wind_solar/{version}")[-3:]
    report = in_workplace.pipeline / "results" / "report.html"
    if "wind_solar/" in report.read_text(encoding="utf-8"):
        assert gate.lineage(str(report)) == gate.lineage(version)


def test_lineage_names_what_is_broken(of_the_pipeline, in_workplace):
    """Data that is gone, a run that was deleted, a notebook, a model and a tag that were changed: each is named."""
    import mlflow

    run_id, model_uri = pipeline_model(in_workplace)
    decision = Decision(True, "promoted: it is a test", (), Scores({"r2": 0.7}))
    Registry().apply(decision, run_id, model_uri, None, "a test")
    client = connect()

    def broken():
        gate = Registry()
        return {link.kind: link.trouble for link in gate.verify(gate.lineage("1")) if link.trouble}

    assert broken() == {}
    notebook = "notebook/train_rf.ipynb"
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/{notebook}")
    validation = in_workplace.pipeline / "data" / "validation.parquet"
    kept = in_workplace.root / ".dvc" / "cache"
    (model,) = in_workplace.settings.artifacts.rglob(f"{model_uri[8:]}/artifacts/model.skops")
    content = model.read_bytes()
    name = "mlflow_gate.learned"
    with contextlib.ExitStack() as undo:
        undo.callback(client.set_tag, run_id, name, client.get_run(run_id).data.tags[name])
        client.set_tag(run_id, name, "{}")  # the gate kept what it was
        undo.callback(client.log_text, run_id, text, notebook)
        client.log_text(run_id, text + " ", notebook)
        undo.callback(client.restore_run, run_id)
        client.delete_run(run_id)
        undo.callback(model.write_bytes, content)
        model.write_bytes(b"{")
        for place in (validation, kept):
            away = place.with_name("away")
            undo.callback(away.rename, place)
            place.rename(away)
        troubles = broken()
    assert set(troubles) == {"data", "notebook", "run", "model", "decision"}
    assert "validation.parquet" in troubles["data"]
    assert "restore" in troubles["run"]
    assert name in troubles["decision"]
    assert broken() == {}


@pytest.mark.parametrize(
    ("subject", "error", "text"),
    [
        ("winter", ConfigError, "neither a model, nor a run, nor a file"),
        ("99", ModelError, "There is no version 99"),
        ("9" * 20, ConfigError, "neither a model, nor a run, nor a file"),
        ("a" * 5000, ConfigError, "neither a model, nor a run, nor a file"),
        ("f" * 32, ModelError, "There is no such run"),
    ],
)
def test_lineage_says_what_it_does_not_know(in_workplace, subject, error, text):
    """A name that leads nowhere is told in words."""
    with pytest.raises(error, match=text):
        Registry().lineage(subject)
