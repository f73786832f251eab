"""The packages' distributions and public names."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tarfile
import zipfile
from email import message_from_bytes

import pytest
from dvc_parallel.commands import imported_modules
from workplace import BIN, ROOT, clean_environment

NAMES = sorted(path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_distribution_has_its_metadata(name, tmp_path):
    """`make dist` builds wheel and sdist, with licence, type marker and the URL of the repository."""
    shutil.copytree(ROOT / "packages" / name, tmp_path / "packages" / name, ignore=shutil.ignore_patterns("tests"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    address = "https://example.org/workshop"
    command = ["make", "-o", ".venv/installed", f"BIN={BIN}", "dist", f"PACKAGE={name}", f"ADDRESS={address}"]
    subprocess.run(command, cwd=tmp_path, env=clean_environment(), check=True)
    (wheel,), (source,) = ((tmp_path / "packages" / name / "dist").glob(end) for end in ("*.whl", "*.tar.gz"))
    licence = (ROOT / "LICENSE").read_text()
    with zipfile.ZipFile(wheel) as archive, tarfile.open(source) as sources:
        files = {file.split("/")[-1]: archive.read(file) for file in archive.namelist()}
        copied = sources.extractfile(f"{source.name.removesuffix('.tar.gz')}/LICENSE").read()
    assert copied.decode() == files["LICENSE"].decode() == licence
    assert "py.typed" in files
    metadata = message_from_bytes(files["METADATA"])
    assert metadata["Project-URL"] == f"Repository, {address}"
    assert metadata["Author"] in licence.replace("the workshop", "The workshop")
    assert len(metadata.get_all("Classifier")) > 8


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_in_the_readme(name):
    """The README of a package explains each name in `__all__`."""
    readme = (ROOT / "packages" / name / "README.md").read_text()
    public = importlib.import_module(name.replace("-", "_")).__all__
    assert [word for word in public if not re.search(rf"\b{word}\b", readme)] == []


def test_engine_is_imported_before_the_fork():
    """dvc-parallel imports papermill-dask before it forks `papermill`, so that each notebook has it already."""
    modules = imported_modules(["papermill a.ipynb b.ipynb --engine dask"], {"PATH": str(BIN)})
    assert modules == ["papermill.__main__", "papermill_dask.client.engine:preload"]
