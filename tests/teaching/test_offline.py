"""The folder for machines without a network: made, damaged, made whole again, and installed from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from workplace import BIN, ROOT, clean_environment, copy_tree, processes_of, required

from workshop.errors import DataError, WorkshopError
from workshop.teaching import offline

PYTHON = (BIN / "python").resolve()  # that this environment was made with
# What `workshop config` imports, and a package that the index has as a source only.
NEEDED = (
    "uv", "setuptools", "click", "pydantic", "pydantic-core", "pydantic-settings", "annotated-types",
    "psutil", "typing-extensions", "typing-inspection", "python-dotenv", "platformdirs", "antlr4-python3-runtime",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A clone whose lock holds a few packages."""
    root = copy_tree(tmp_path_factory.mktemp("clone"))
    lines = (root / "requirements.txt").read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split("==")[0] in (*NEEDED, "-e .\n")]
    (root / "requirements.txt").write_text("".join(kept))
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
    command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    return not subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode


def test_only_what_is_missing_or_damaged_is_fetched_again(root, folder):
    """A wheel that was cut short, one that is missing, one that nobody asked for: put right, and no more done."""
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


@pytest.fixture
def cut_off(tmp_path) -> Callable:
    """Return what runs a program where there is no network but loopback, and nothing of this machine's settings."""
    required("root, for a network namespace", os.geteuid() == 0 and shutil.which("unshare"))
    (tmp_path / "home").mkdir()
    environment = {"PATH": f"{PYTHON.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    environment |= {"UV_CACHE_DIR": str(tmp_path / "cache")}

    def run(*command: str | Path, cwd: Path) -> str:
        words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *map(str, command)]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_machine_without_a_network_installs_from_the_folder(folder, cut_off, tmp_path):
    """Clone from the folder, `make` with OFFLINE; what pip is asked for later, it finds in the folder, too."""
    clone = tmp_path / "workshop"
    cut_off("git", "clone", "--quiet", folder / "workshop.bundle", clone, cwd=tmp_path)
    cut_off("make", ".venv/installed", f"PYTHON={PYTHON}", f"OFFLINE={folder}", cwd=clone)
    lines = cut_off(clone / ".venv" / "bin" / "workshop", "config", "--export", cwd=clone).splitlines()
    assert f"export PIP_FIND_LINKS={(folder / 'wheels').as_uri()}" in lines
    exports = "\n".join(lines)
    cut_off("sh", "-c", f"{exports}\npython -m venv new && new/bin/pip install --quiet click", cwd=tmp_path)
    assert list((tmp_path / "new").glob("lib/*/site-packages/click"))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_whole_workshop_runs_without_a_network(cut_off, tmp_path):
    """The whole lock: `make run` to a model in production, and chapter 3's project in an environment of its own."""
    folder, clone = tmp_path / "offline", tmp_path / "workshop"
    offline.make(folder, ROOT)
    cut_off("git", "clone", "--quiet", folder / "workshop.bundle", clone, cwd=tmp_path)
    # One shell, for the servers live in its network.
    script = f"""
        set -e
        make run PYTHON={PYTHON} OFFLINE={folder}
        trap '.venv/bin/workshop down' EXIT
        eval "$(.venv/bin/workshop config --export)"
        workshop doctor
        (cd 3_projects && mlflow run lr)
    """
    said = cut_off("bash", "-c", script, cwd=clone)
    assert "Production  wind_solar version 1" in said
    assert "ok  production: wind_solar version 1 loads" in said
    assert "R2 0." in said
    assert not processes_of(clone)


def test_folder_of_another_machine_is_refused(root, tmp_path):
    """Wheels for two kinds of machines are not mixed."""
    (tmp_path / "made-for.json").write_text(json.dumps({"system": "Darwin arm64", "python": "3.12"}))
    with pytest.raises(DataError, match=r"Darwin arm64, Python 3\.12"):
        offline.make(tmp_path, root)


def test_folder_of_somebody_else_is_left_alone(root, tmp_path):
    """Wheels that another program put there would be taken for damaged ones."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "mine.whl").touch()
    with pytest.raises(DataError, match="in use for something else"):
        offline.make(tmp_path, root)
    assert (tmp_path / "wheels" / "mine.whl").exists()


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
