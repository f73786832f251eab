"""What the experiment is."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from workplace import BIN, ROOT, clean_environment

from workshop.errors import ParameterError
from workshop.parameters import read, read_stage

COMMITTED = ROOT / "4_pipeline" / "params.yaml"


@pytest.fixture
def changed(tmp_path):
    """A function that writes the committed parameters with one of them changed."""

    def write(stage, key, value):
        content = yaml.safe_load(COMMITTED.read_text())
        content[stage][key] = value
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.mark.parametrize(
    ("stage", "key", "value", "words"),
    [
        ("train_rf", "n_estimators", "many", ["train_rf.n_estimators", "'many'", "integer, from 1, to 2000"]),
        ("train_rf", "n_estimators", 0, ["train_rf.n_estimators", "0", "integer, from 1, to 2000"]),
        ("train_rf", "n_estimatorz", 5, ["train_rf.n_estimatorz is unknown", "Did you mean `n_estimators`?"]),
        ("split", "test_fraction", 2, ["split.test_fraction", "2", "from 0.05, to 0.5"]),
        ("fetch", "source", "moon", ["fetch.source", "'moon'", "'sample'"]),
        ("report", "week", "2016-40", ["report.week", "2016-40", "latest"]),
        ("train_keras", "learning_rate", float("nan"), ["train_keras.learning_rate", "nan"]),
    ],
)
def test_parameter_that_is_not_allowed_is_named(changed, stage, key, value, words):
    """The error names the key, the value and what is allowed, for one stage and for the whole file."""
    file = changed(stage, key, value)
    for check in (lambda: read(file), lambda: read_stage(file, stage)):
        with pytest.raises(ParameterError) as caught:
            check()
        for word in words:
            assert word in str(caught.value)


def test_parameter_of_another_stage_does_not_matter(changed):
    """A stage looks at its own section alone."""
    assert read_stage(changed("train_rf", "n_estimators", "many"), "split").test_fraction == 0.2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no stages"),
        ("split: [1", r"is not YAML(?s:.)*params\.yaml\", line 1"),
        ("split: {test_fraction: 0.2, test_fraction: 0.3}", "is not YAML(?s:.)*duplicate key"),
        ("split: {test_fraction: 0.2} # gr\u00fcn".encode("cp1252"), "is not YAML in UTF-8(?s:.)*decode"),
        ("split: {test_fraction: 0.2}".encode("utf-16"), "is not YAML in UTF-8(?s:.)*decode"),
        ("moon: {a: 1}", "moon is unknown"),
        ("fetch: 3", "fetch is not allowed(?s:.)*a valid dictionary"),
    ],
)
def test_parameters_file_that_is_broken_is_refused(tmp_path, content, words):
    """A file that is no mapping of stages is told in words."""
    file = tmp_path / "params.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ParameterError, match=words):
        read(file)
    with pytest.raises(ParameterError, match=r"no\.yaml"):
        read(tmp_path / "no.yaml")


def test_section_is_written_for_papermill(tmp_path):
    """`workshop params STAGE --to FILE` writes the section."""
    (tmp_path / "4_pipeline").mkdir()
    (tmp_path / "4_pipeline" / "params.yaml").write_text(COMMITTED.read_text())
    environment = clean_environment() | {"WORKSHOP_ROOT": str(tmp_path)}
    command = [BIN / "workshop", "params", "train_rf", "--to", tmp_path / "executed" / "train_rf.yaml"]
    subprocess.run(command, check=True, env=environment)
    section = yaml.safe_load(COMMITTED.read_text())["train_rf"]
    assert yaml.safe_load(command[-1].read_text()) == section
