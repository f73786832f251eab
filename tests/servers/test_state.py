"""The version of a state folder: written, adopted, brought up to date, refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from workplace import BIN, clean_environment

from workshop.errors import ServiceError
from workshop.servers import state
from workshop.settings import STATE_VERSION, Settings


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """Settings with an empty state folder of their own."""
    monkeypatch.setenv("WORKSHOP_STATE", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return Settings()


def add_step(monkeypatch, to: int, steps: list[int]) -> None:
    """Pretend that this clone knows one version more."""
    monkeypatch.setattr(state, "STATE_VERSION", to)
    monkeypatch.setitem(state.MIGRATIONS, to - 1, lambda _: steps.append(to))


def test_new_state_gets_the_version_of_its_clone(settings):
    """One line in the file `version`."""
    state.ensure_version(settings)
    assert settings.version_file.read_text() == f"{STATE_VERSION}\n"
    assert [file.name for file in settings.state.iterdir()] == ["version"]


def test_state_without_a_version_is_version_1(settings, monkeypatch):
    """What was made before versions were written is adopted, and brought up to date from there."""
    settings.database.touch()
    assert state.read_version(settings) == 1
    steps: list[int] = []
    add_step(monkeypatch, 2, steps)
    state.ensure_version(settings)
    assert steps == [2]
    assert settings.version_file.read_text() == "2\n"


def test_older_state_is_brought_up_to_date_step_by_step(settings, monkeypatch):
    """Each step once, in order; one that fails is done again the next time, and those before it are not."""
    settings.version_file.write_text("1\n")
    steps: list[int] = []
    add_step(monkeypatch, 2, steps)
    add_step(monkeypatch, 3, steps)
    second = state.MIGRATIONS[2]
    monkeypatch.setitem(state.MIGRATIONS, 2, lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        state.ensure_version(settings)
    monkeypatch.setitem(state.MIGRATIONS, 2, second)
    state.ensure_version(settings)
    state.ensure_version(settings)
    assert steps == [2, 3]
    assert settings.version_file.read_text() == "3\n"


def test_every_older_version_has_a_step():
    """Whoever raises STATE_VERSION says how to get there."""
    assert set(state.MIGRATIONS) == set(range(1, STATE_VERSION))


@pytest.mark.parametrize("content", [b"", b"two\n", b"-1\n", b"0\n", b"1.5\n", b"\xff\xfe", "²\n".encode()])
def test_damaged_version_is_told_in_words(settings, content):
    """The value, what is allowed, what to do."""
    settings.version_file.write_bytes(content)
    with pytest.raises(ServiceError, match="is damaged") as caught:
        state.read_version(settings)
    assert f"from 1 to {STATE_VERSION}" in str(caught.value)


def test_up_refuses_the_state_of_a_newer_clone(tmp_path):
    """Exit 1, the version found and the one allowed, what to type; nothing is started or changed."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "version").write_text(f"{STATE_VERSION + 1}\n")
    done = run_up(folder)
    assert done.returncode == 1
    found, allowed = f"version {STATE_VERSION + 1}", f"version {STATE_VERSION}, or an older one"
    for words in (found, allowed, "git pull", "WORKSHOP_STATE"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "mlflow.db").exists()
    assert not (folder / "ports.json").exists()
    assert (folder / "version").read_text() == f"{STATE_VERSION + 1}\n"


def run_up(folder: Path) -> subprocess.CompletedProcess:
    """Type `workshop up` for a state folder."""
    environment = clean_environment() | {"WORKSHOP_STATE": str(folder)}
    return subprocess.run([BIN / "workshop", "up"], env=environment, capture_output=True, text=True, check=False)
