"""The folder for machines without a network: made, damaged, made whole again, and installed from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from workplace import BIN, ROOT, clean_environment, copy_tree, required

from workshop.errors import DataError, WorkshopError
from workshop.teaching import offline

# What `workshop config` imports, and a package that the index has as a source only.
NEEDED = ("uv", "setuptools", "click", "pydantic", "pydantic-core", "pydantic-settings", "annotated-types",
          "typing-extensions", "typing-inspection", "python-dotenv", "platformdirs", "antlr4-python3-runtime")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A clone whose lock holds a few packages."""
    root = copy_tree(tmp_path_factory.mktemp("clone"))
    lines = (root / "requirements.txt").read_text().splitlines(keepends=True)
    (root / "requirements.txt").write_text("".join(line for line in lines if line.split("==")[0] in NEEDED))
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--all", "--message", "Need little"], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory) -> Path:
    """Its offline folder; the blank is that of many a stick."""
    folder = tmp_path_factory.mktemp("media") / "USB stick"
    made = offline.make(folder, root)
    assert made.packages == made.fetched == len(NEEDED)
    assert made.size > 1e6
    return folder


def sums_agree(folder: Path) -> bool:
    """Whether `sha256sum`, as the folder's page has it, finds all files whole."""
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True, check=False
    )
    return done.returncode == 0


def test_only_what_is_missing_or_damaged_is_fetched_again(root, folder):
    """A wheel that was cut short, one that is missing, one that nobody asked for: all is put right, and no more done."""
    assert sums_agree(folder)
    short, missing, *_ = sorted((folder / "wheels").iterdir())
    short.write_bytes(short.read_bytes()[:1000])
    missing.unlink()
    shutil.copy(BIN.parent / "pyvenv.cfg", folder / "wheels" / "left-1.0-py3-none-any.whl")
    assert not sums_agree(folder)
    told = []
    made = offline.make(folder, root, lambda *done: told.append(done))
    assert made.fetched == 2
    assert told == [(len(NEEDED) - 2, len(NEEDED)), (len(NEEDED), len(NEEDED))]
    assert sums_agree(folder)
    assert len(list((folder / "wheels").iterdir())) == len(NEEDED)
    assert offline.make(folder, root).fetched == 0


def test_machine_without_a_network_installs_from_the_folder(folder, tmp_path):
    """Cut off from every network: clone from the folder, `make` with OFFLINE, and later pip asks the folder, too."""
    required("root, for a network namespace", os.geteuid() == 0 and shutil.which("unshare"))
    clone = tmp_path / "workshop"
    home = {"HOME": str(tmp_path / "home"), "UV_CACHE_DIR": str(tmp_path / "cache")}
    (tmp_path / "home").mkdir()
    # Nothing of this machine's settings for packages; the programs of the system and the Python under this environment.
    python = Path((BIN / "python").resolve())
    environment = {"PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin"} | home

    def cut_off(*command: str | Path, cwd: Path) -> str:
        words = ["unshare", "--net", *map(str, command)]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    cut_off("git", "clone", "--quiet", folder / "workshop.bundle", clone, cwd=tmp_path)
    cut_off("make", ".venv/installed", f"PYTHON={python}", f"OFFLINE={folder}", cwd=clone)
    lines = cut_off(clone / ".venv" / "bin" / "workshop", "config", "--export", cwd=clone).splitlines()
    assert f"export PIP_FIND_LINKS={(folder / 'wheels').as_uri()}" in lines
    exports = "\n".join(lines)
    cut_off("sh", "-c", f"{exports}\npython -m venv new && new/bin/pip install --quiet click", cwd=tmp_path)
    assert (tmp_path / "new" / "bin").exists()


def test_folder_of_another_machine_is_refused(root, tmp_path):
    """Wheels for two kinds of machines are not mixed."""
    (tmp_path / "made-for.json").write_text(json.dumps({"system": "Darwin arm64", "python": "3.12"}))
    with pytest.raises(DataError, match="Darwin arm64, Python 3.12"):
        offline.make(tmp_path, root)


def test_folder_that_cannot_be_written_is_said_in_words(root, tmp_path):
    """A file is in the way."""
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        offline.make(tmp_path / "file" / "below", root)


def test_package_that_cannot_be_had_is_said_in_words(root, tmp_path, monkeypatch):
    """No network: pip's own words, and that the same command goes on where it was."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WorkshopError, match="No matching distribution") as error:
        offline.make(tmp_path / "folder", root)
    assert "goes on" in error.value.next_step


def test_command_tells_progress_and_what_to_type_there(folder, root):
    """How many of how many, the size, and the line for the other machine; standard output is the folder alone."""
    environment = clean_environment() | {"WORKSHOP_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [BIN / "workshop", "offline", folder]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(NEEDED)} of {len(NEEDED)} packages" in done.stderr
    assert f"make run OFFLINE={folder}" in done.stderr
    assert done.stdout == f"{folder}\n"
    assert "git clone /opt/workshop/workshop.bundle" in (folder / "README.md").read_text()
