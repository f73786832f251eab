"""A stage as dvc.yaml declares it: files, parameters, and the code that it depends on."""

from __future__ import annotations

import pytest

from workshop.errors import EngineError, ParameterError
from workshop.pipeline import Stage

DECLARED = """
stages:
  train:
    cmd: true
    deps: [notebooks/train.ipynb, data/train.parquet]
    outs:
      - results/train.json
      - results/report.html: {persist: true}
    metrics: [results/metrics.json]
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A stage declared in the current folder."""
    (tmp_path / "dvc.yaml").write_text(DECLARED)
    monkeypatch.chdir(tmp_path)
    return Stage("train")


def test_stage_file_that_is_not_declared_names_those_that_are(stage):
    """The error says what the stage declares and where to add to it; for an unknown stage, which stages there are."""
    with pytest.raises(EngineError) as caught:
        stage.input("test.parquet")
    for word in ("train", "test.parquet", "train.parquet", "dvc.yaml"):
        assert word in str(caught.value)
    with pytest.raises(EngineError, match="train"):
        Stage("trains")


@pytest.mark.parametrize("content", ["", "stages: [", "vars: []"])
def test_stage_file_that_is_broken_is_named(tmp_path, monkeypatch, content):
    """A dvc.yaml without stages ends in words."""
    (tmp_path / "dvc.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match=r"dvc\.yaml"):
        Stage("train")


def test_stage_takes_its_parameters_from_the_notebook(tmp_path, monkeypatch):
    """Of all variables those of the section, checked; a missing or wrong one is named."""
    (tmp_path / "dvc.yaml").write_text("stages: {split: {cmd: x}}")
    monkeypatch.chdir(tmp_path)
    assert Stage("split", {"test_fraction": 0.3, "other": 1}).parameters.model_dump() == {"test_fraction": 0.3}
    for variables in ({"test_fraction": 3}, {}):
        with pytest.raises(ParameterError, match=r"split\.test_fraction is (not allowed|missing)"):
            Stage("split", variables)
