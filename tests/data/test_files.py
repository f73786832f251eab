"""A stage as dvc.yaml declares it; files that are written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from workshop.data.files import Stage, write_whole
from workshop.errors import DataError, EngineError, ParameterError

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
    assert Stage("split", {"test_fraction": 0.3, "other": 1}).parameters == {"test_fraction": 0.3}
    for variables in ({"test_fraction": 3}, {}):
        with pytest.raises(ParameterError, match=r"split\.test_fraction is (not allowed|missing)"):
            Stage("split", variables)


# -- any file ----------------------------------------------------------------------------------------------------------
def test_write_whole_replaces_a_file_and_makes_its_folder(tmp_path):
    """The file is whole, its folder is made, and no temporary file stays; a folder that cannot be made is an error."""
    path = tmp_path / "new" / "file.csv"
    write_whole(path, b"old")
    assert write_whole(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(DataError, match=r"germany\.csv could not be written") as caught:
        write_whole(path / "germany.csv", b"x")
    assert caught.value.next_step


def test_write_whole_keeps_the_old_file_when_the_disk_is_full(tmp_path):
    """A write that the system refuses half-way leaves the old content and no other file."""
    path = tmp_path / "germany.csv"
    path.write_bytes(b"old")
    # A limit on file size makes the system refuse a write as a full disk does, without filling one.
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        from workshop.data.files import write_whole
        from workshop.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_whole(Path({str(path)!r}), b"x" * 5000)
        except DataError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "germany.csv could not be written" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
