"""The doctor: each problem is caused, or simulated if it cannot be caused; its finding names the next step."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner
from workplace import BIN, ROOT, environment_of, new_workplace, run_program

from workshop.cli import main
from workshop.servers.services import SERVICES
from workshop.settings import Settings
from workshop.teaching import doctor, prerequisites
from workshop.teaching.doctor import LOOK, OK, WRONG

WSL_VERSION = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@941d701f84f1) (gcc (GCC) 11.2.0)"
DEBIAN_VERSION = "Linux version 6.1.0-25-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0)"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A clone without running servers, and the environment of a shell configured for it."""
    root, environment = new_workplace(tmp_path_factory.mktemp("clone"))
    return root, environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{environment['WORKSHOP_MLFLOW_PORT']}"}


@pytest.fixture
def settings(clone, monkeypatch) -> Iterator[Settings]:
    """The clone's settings, in a shell configured for it; the state folder is removed afterwards."""
    root, environment = clone
    with environment_of(environment):
        monkeypatch.chdir(root)
        settings = Settings()
        settings.state.mkdir(parents=True, exist_ok=True)
        yield settings
        shutil.rmtree(settings.state)
        monkeypatch.undo()


def assert_found(check: str, verdict: str, *words: str) -> None:
    """Assert that the finding of a check has this verdict, contains these words, and names a next step."""
    [finding] = [each for each in doctor.examine(Settings()) if each.check == check]
    assert (finding.verdict, bool(finding.next_step)) == (verdict, verdict != OK), finding
    for word in words:
        assert word in f"{finding.found} {finding.next_step}"


# -- all of it ---------------------------------------------------------------------------------------------------------
def test_fresh_clone_is_well(settings):
    """All findings of a fresh clone are `ok`."""
    findings = doctor.examine(settings)
    assert [finding for finding in findings if finding.verdict != OK or finding.next_step] == []


def test_command_exits_1_only_when_something_will_fail(settings, monkeypatch):
    """With `look` findings only, the exit code is 0; `wrong` exits 1 and shows the next step; JSON has all fields."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "?   tracking address" in done.output
    settings.pid_file.touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "!!  tracking address: MLFLOW_TRACKING_URI is sqlite:///mlflow.db" in done.output
    assert "    next: eval" in done.output
    rows = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    assert rows[0].keys() == {"check", "verdict", "found", "next_step"}


# -- before anything is installed --------------------------------------------------------------------------------------
def problems(**options) -> str:
    """Return the problems of this machine as text."""
    return "\n".join(map(" ".join, prerequisites.find_problems(**options)))


def test_prerequisites_run_on_any_python():
    """An old Python 3 can parse the file; on a ready machine it exits 0 and prints nothing."""
    ast.parse(Path(prerequisites.__file__).read_text(), feature_version=(3, 6))
    done = run_program(sys.executable, prerequisites.__file__, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("", "")


def test_windows_without_wsl_is_reported(monkeypatch):
    """The next step is to install WSL. Other missing requirements are tested with `make run`."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert "wsl --install" in problems()


def test_clone_on_a_windows_drive_is_found():
    """In WSL a clone below /mnt/c is wrong, one in the home folder is fine; on plain Linux both are fine."""
    ((what, next_step),) = prerequisites.find_place_problems("/mnt/c/Users/me/workshop", WSL_VERSION)
    assert "Windows drive" in what
    assert "cd ~ && git clone" in next_step
    assert prerequisites.find_place_problems("/home/me/workshop", WSL_VERSION) == []
    assert prerequisites.find_place_problems("/mnt/c/workshop", DEBIAN_VERSION) == []


def test_path_with_a_space_is_found(tmp_path):
    """Make and the shebang lines of scripts cannot use such a path."""
    folder = tmp_path / "My Documents"
    folder.mkdir()
    assert "contains a space" in problems(folder=str(folder))


# -- the machine -------------------------------------------------------------------------------------------------------
def test_little_memory_is_found(settings):
    """A limit of 3 GB is `look`, one of 1 GB is `wrong`; while the servers run, less is enough."""
    code = """
        import resource
        from workshop.settings import Settings
        from workshop.teaching import doctor
        settings = Settings()
        for is_up, limit in ((False, 3 * 10**9), (True, 2 * 10**9), (False, 10**9)):
            resource.setrlimit(resource.RLIMIT_RSS, (limit, limit))
            settings.pid_file.touch() if is_up else settings.pid_file.unlink(missing_ok=True)
            print(*vars(doctor._memory(Settings())).values())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = run_program(*command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    three, two, one = done.stdout.splitlines()
    assert "look 3.0 GB available" in three
    assert "WORKSHOP_DASK_WORKERS=1" in three
    assert "ok 2.0 GB available" in two
    assert "wrong 1.0 GB available" in one


@pytest.mark.parametrize(("folder", "verdict"), [("/home", LOOK), ("/srv", OK)])
def test_network_file_system_is_found(settings, monkeypatch, folder, verdict):
    """A state folder on NFS is `look`; one on a local disk is `ok`."""
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint="/home", fstype="nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)  # noqa: A006 - psutil's name
    finding = doctor._disk(settings.model_copy(update={"state": Path(folder, "workshop")}))
    assert (finding.verdict, "WORKSHOP_STATE=" in finding.next_step) == (verdict, verdict == LOOK)


# -- the shell ---------------------------------------------------------------------------------------------------------
def test_tracking_address_of_another_server_is_found(settings, monkeypatch):
    """Another address is `wrong` while the servers run here, else `look`; no address is `look`."""
    assert_found("tracking address", OK)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert_found("tracking address", LOOK, "http://127.0.0.1:9", "config --export")
    settings.pid_file.touch()
    assert_found("tracking address", WRONG, "http://127.0.0.1:9", "config --export")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert_found("tracking address", LOOK, "not set", "config --export")


@pytest.mark.parametrize("name", ["mlflow.db", "mlruns"])
def test_stray_runs_are_found(name, settings, monkeypatch, tmp_path):
    """MLflow's stores in a chapter's folder or the current folder are found; the server's own database is ignored."""
    (settings.state / "mlflow.db").touch()
    assert_found("stray runs", OK)
    monkeypatch.chdir(tmp_path)
    for folder in (settings.root / "3_projects" / "lr", tmp_path):
        (folder / name).mkdir()
        assert doctor._stray_runs(Settings(root=settings.root)).next_step.endswith(f"rm -r {folder / name}")
        (folder / name).rmdir()


@pytest.mark.usefixtures("settings")
def test_programs_of_another_environment_are_found(monkeypatch, tmp_path):
    """An activated environment with its own `mlflow` is `wrong`; no `mlflow` on PATH is `look`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mlflow").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "mlflow").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert_found("programs", WRONG, str(tmp_path / "bin" / "mlflow"), "deactivate")
    (tmp_path / "bin" / "mlflow").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin")
    assert_found("programs", LOOK, f"{BIN} are not on PATH", "config --export")


# -- the servers -------------------------------------------------------------------------------------------------------


def test_port_in_use_is_reported_with_its_owner(settings):
    """The finding is `ok`, since `up` chooses another port, but names the owner."""
    with socket.create_server(("127.0.0.1", settings.dashboard_port)):
        assert_found("dashboard", OK, f"port {settings.dashboard_port} is used by", f"process {os.getpid()}")


def test_servers_that_do_not_answer_are_found(settings):
    """Each server that was started but is down is `wrong`, with its log."""
    settings.pid_file.touch()
    findings = {finding.check: finding for finding in doctor.examine(Settings())}
    for service in SERVICES:
        assert findings[service.name].verdict == WRONG
        assert f"{service.name}.log" in findings[service.name].next_step
