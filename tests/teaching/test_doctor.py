"""The doctor: each finding is caused, or where that cannot be, its recorded sign is fed; and the next step is named."""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from workplace import BIN, ROOT, clean_environment, environment_of, new_workplace, required

from workshop.cli import main
from workshop.ownership import MARK, find_holders
from workshop.servers.services import SERVICES
from workshop.settings import Settings
from workshop.teaching import prerequisites
from workshop.teaching.doctor import LOOK, OK, WRONG, Finding, examine, kernels, machine, servers, shell

# As WSL 2, WSL 1 and a Linux with its home on another machine have them in /proc/mounts.
WSL_2 = """\
/dev/sdc / ext4 rw,relatime,discard,errors=remount-ro,data=ordered 0 0
C:\\134 /mnt/c 9p rw,noatime,dirsync,aname=drvfs;path=C:\\;uid=1000;gid=1000;symlinkroot=/mnt/,trans=fd,rfd=5,wfd=5 0 0
"""
WSL_1 = """\
rootfs / wslfs rw,noatime 0 0
C:\\134 /mnt/c drvfs rw,noatime,uid=1000,gid=1000,case=off 0 0
"""
WSL_VERSION = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@941d701f84f1) (gcc (GCC) 11.2.0)"
DEBIAN_VERSION = "Linux version 6.1.0-25-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0)"
NFS = """\
/dev/sda1 / ext4 rw,relatime 0 0
files.example.org:/export/home /home nfs4 rw,relatime,vers=4.2,rsize=1048576 0 0
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A clone in which nothing runs, and the environment of a shell that is set up for it."""
    root, environment = new_workplace(tmp_path_factory.mktemp("clone"))
    return root, environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{environment['WORKSHOP_MLFLOW_PORT']}"}


@pytest.fixture
def settings(clone, monkeypatch) -> Iterator[Settings]:
    """The clone's settings, in a shell that is set up for it; what the clone was given is taken away again."""
    root, environment = clone
    with environment_of(environment):
        monkeypatch.chdir(root)
        settings = Settings()
        settings.state.mkdir(parents=True, exist_ok=True)
        yield settings
        shutil.rmtree(settings.state)
        monkeypatch.undo()


def of(findings: Iterator[Finding], check: str) -> Finding:
    """Return the one finding of that name."""
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def assert_wrong(finding: Finding, *words: str) -> None:
    """Something will fail: the doctor says what, and what to type."""
    assert finding.verdict == WRONG
    assert finding.next_step
    for word in words:
        assert word in f"{finding.found} {finding.next_step}"


def assert_look(finding: Finding, *words: str) -> None:
    """Something may surprise: the doctor says what, and what to type."""
    assert finding.verdict == LOOK
    assert finding.next_step
    for word in words:
        assert word in f"{finding.found} {finding.next_step}"


# -- all of it ---------------------------------------------------------------------------------------------------------
def test_fresh_clone_is_well(settings):
    """Where nothing is the matter nothing is wrong; only the package is another clone's, as it is in these tests."""
    findings = examine(settings)
    assert [finding for finding in findings if finding.verdict == WRONG] == []
    assert [finding.check for finding in findings if finding.verdict == LOOK] == ["package"]
    assert all(bool(finding.next_step) == (finding.verdict != OK) for finding in findings)


def test_command_exits_1_only_when_something_will_fail(settings, monkeypatch):
    """`look` alone exits 0; `wrong` exits 1 and shows the next step; JSON holds all fields."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "?   tracking address" in done.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "!!  database address: MLFLOW_TRACKING_URI is sqlite:///mlflow.db" in done.output
    assert "    next: unset it" in done.output
    rows = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
    assert rows[0].keys() == {"check", "verdict", "found", "next_step", "ok"}


# -- before anything is installed --------------------------------------------------------------------------------------
def problems(**options) -> str:
    """Return all that keeps this machine from being ready, as text."""
    return "\n".join(map(" ".join, prerequisites.find_problems(**options)))


def test_prerequisites_are_for_any_python():
    """The file parses as the Python of 2016 does, so that an old one can say that it is too old."""
    ast.parse(Path(prerequisites.__file__).read_text(), feature_version=(3, 6))


def test_ready_machine_has_no_problems():
    """Run as the Makefile runs it: exit 0, no word."""
    command = [sys.executable, prerequisites.__file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_python_out_of_range_is_told(monkeypatch):
    """Too old and too new: which one it is, and how to name another."""
    for version in ((3, 10, 14), (3, 14, 0)):
        monkeypatch.setattr(sys, "version_info", version)
        assert f"Python {version[0]}.{version[1]} is out of range" in problems()
        assert "make run PYTHON=" in problems()


def test_python_without_venv_is_told(monkeypatch):
    """Debian splits it off: the package to install is named."""
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert f"apt install python3.{sys.version_info.minor}-venv" in problems()


def test_missing_git_is_told(monkeypatch, tmp_path):
    """No git on PATH, and one that does not run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git is not installed" in problems()
    (tmp_path / "git").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "git").chmod(0o755)
    assert "git does not run" in problems()


def test_windows_itself_is_told(monkeypatch):
    """There the way is WSL."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert "wsl --install" in problems()


@pytest.mark.parametrize("mounts", [WSL_1, WSL_2])
def test_clone_on_a_windows_drive_is_told(mounts):
    """Seen from WSL /mnt/c is wrong, the Linux home is well; on a plain Linux the same path is well."""
    ((what, next_step),) = prerequisites.find_place_problems("/mnt/c/Users/me/workshop", WSL_VERSION, mounts)
    assert "drive of Windows" in what
    assert "cd ~ && git clone" in next_step
    assert prerequisites.find_place_problems("/home/me/workshop", WSL_VERSION, mounts) == []
    assert prerequisites.find_place_problems("/mnt/c/workshop", DEBIAN_VERSION, NFS) == []


def test_path_with_a_blank_is_told(tmp_path):
    """Make and the first lines of scripts cannot hold such a path."""
    folder = tmp_path / "My Documents"
    folder.mkdir()
    assert "holds a blank" in problems(folder=str(folder))
    mounts = f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {tmp_path}/My\\040Documents vfat rw 0 0\n"
    assert prerequisites.find_filesystem(str(folder / "clone"), mounts) == "vfat"


def test_offline_folder_of_another_machine_is_told(tmp_path):
    """One for another Python, and one that is none."""
    assert "no folder that `workshop offline` made" in problems(offline=str(tmp_path))
    (tmp_path / "made-for.json").write_text('{"system": "Darwin arm64", "python": "3.10"}')
    assert "are for Darwin arm64, Python 3.10" in problems(offline=str(tmp_path))


# -- the machine -------------------------------------------------------------------------------------------------------
def in_python(code: str, *before: str) -> str:
    """Run code in a Python of its own, behind a program such as `unshare`; return its output."""
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_little_memory_is_found(settings):
    """A limit of 3 GB is worth a look, one of 1 GB is wrong; where the servers run already, half of it is enough."""
    code = """
        import resource
        from workshop.settings import Settings
        from workshop.teaching.doctor import machine
        settings = Settings()
        for is_up, limit in ((False, 3 * 10**9), (True, 2 * 10**9), (False, 10**9)):
            resource.setrlimit(resource.RLIMIT_RSS, (limit, limit))
            settings.ports_file.write_text("{}") if is_up else settings.ports_file.unlink(missing_ok=True)
            print(*machine._memory(Settings()).as_dict().values())
    """
    three, two, one = in_python(code).splitlines()
    assert "look 3.0 GB available" in three
    assert "WORKSHOP_DASK_WORKERS=1" in three
    assert "ok 2.0 GB available" in two
    assert "wrong 1.0 GB available" in one


def test_full_disk_is_found():
    """A disk of 20 MB: said before the installation, and of the folder for temporary files."""
    required("root, to mount a small disk", os.geteuid() == 0)
    code = """
        import os, subprocess, tempfile
        from workshop.settings import Settings
        from workshop.teaching import prerequisites
        from workshop.teaching.doctor import machine
        folder = tempfile.mkdtemp()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", folder], check=True)
        tempfile.tempdir = folder
        print(prerequisites.find_problems(folder))
        print([found for found in machine.examine(Settings()) if found.check == "temporary folder"])
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)
    """
    before, after = in_python(code, "unshare", "--mount").splitlines()
    assert "only 0.0 GB of disk are free" in before
    assert "has 0.0 GB free" in after
    assert "TMPDIR" in after


@pytest.mark.parametrize(
    ("name", "variable"),
    [("home folder", "HOME"), ("cache folder", "WORKSHOP_DOWNLOADS"), ("state folder", "WORKSHOP_STATE")],
)
def test_folder_that_cannot_be_written_is_found(settings, name, variable, monkeypatch, tmp_path):
    """Something else in its place: the folder is named, and the variable that chooses another."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    assert_wrong(of(machine.examine(Settings()), name), str(tmp_path / "file"), variable)


def test_disk_of_another_machine_is_found():
    """A home on NFS is worth a look; a folder beside it is well."""
    assert_look(machine.network_disk(Path("/home/me/workshop"), NFS), "nfs4", "WORKSHOP_STATE=")
    assert machine.network_disk(Path("/srv/workshop"), NFS).verdict == OK


def test_few_open_files_are_found(settings):
    """macOS allows 256."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert_look(of(machine.examine(settings), "open files"), "may open 256 files", "ulimit -n 4096")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("name", ["instances", "watches"])
def test_used_up_file_watchers_are_found(name):
    """A user who may watch nothing more: which of the two limits it is."""
    code = f"""
        from pathlib import Path
        Path("/proc/sys/user/max_inotify_{name}").write_text("0")
        from workshop.settings import Settings
        from workshop.teaching.doctor import machine
        (found,) = [found for found in machine.examine(Settings()) if found.check == "file watchers"]
        print(found.verdict, found.next_step)
    """
    required("user namespaces", not subprocess.run(["unshare", "--user", "--map-root-user", "true"]).returncode)
    assert f"fs.inotify.max_user_{name}" in in_python(code, "unshare", "--user", "--map-root-user")


def test_clock_that_is_behind_is_found(settings):
    """A file that was written three days from now; two minutes are no matter."""
    file = settings.root / "requirements.txt"
    now = file.stat().st_mtime
    try:
        os.utime(file, (now, time.time() + 60))
        assert of(machine.examine(settings), "clock").verdict == OK
        os.utime(file, (now, time.time() + 3 * 86400))
        assert_wrong(of(machine.examine(settings), "clock"), "3 days", str(file), "timedatectl")
    finally:
        os.utime(file, (now, now))


def test_commit_from_the_future_is_found(settings, tmp_path):
    """Fetched from somebody whose clock is right."""
    root, _ = new_workplace(tmp_path / "clone")
    future = f"{time.time() + 7200:.0f} +0000"
    author = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@localhost"}
    committer = {"GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@localhost", "GIT_COMMITTER_DATE": future}
    command = ["git", "commit", "--quiet", "--allow-empty", "--message", "Later"]
    subprocess.run(command, cwd=root, env=os.environ | author | committer, check=True)
    assert_wrong(of(machine.examine(settings.model_copy(update={"root": root})), "clock"), "commit", "120 minutes")


# -- the shell ---------------------------------------------------------------------------------------------------------
def test_proxy_that_catches_loopback_is_found(settings, monkeypatch):
    """http_proxy without NO_PROXY, and the line that mends it mends it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)  # an earlier test may have connected
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = of(shell.examine(settings), "proxy")
    assert_wrong(found, "NO_PROXY")
    monkeypatch.setenv("NO_PROXY", found.next_step.split("=")[1])
    assert of(shell.examine(settings), "proxy").verdict == OK


def test_tracking_address_of_another_server_is_found(settings, monkeypatch):
    """Set to another is wrong while the servers run here, else worth a look, as is none."""
    assert of(shell.examine(settings), "tracking address").verdict == OK
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert_look(of(shell.examine(Settings()), "tracking address"), "http://127.0.0.1:9", "config --export")
    settings.ports_file.write_text("{}")
    assert_wrong(of(shell.examine(Settings()), "tracking address"), "http://127.0.0.1:9", "config --export")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert_look(of(shell.examine(Settings()), "tracking address"), "not set", "config --export")


@pytest.mark.parametrize("name", shell.ADDRESSES)
def test_relative_database_is_found(name, settings, monkeypatch):
    """Three slashes are relative to the current folder; four are a path, and another database has a host."""
    for address in ("sqlite:////srv/mlflow.db", "postgresql://user:secret@host/mlflow"):
        monkeypatch.setenv(name, address)
        assert of(shell.examine(Settings()), "database address").verdict == OK
    monkeypatch.setenv(name, "sqlite:///mlflow.db")
    assert_wrong(of(shell.examine(Settings()), "database address"), f"{name} is sqlite:///mlflow.db", "four slashes")


@pytest.mark.parametrize("name", ["mlflow.db", "mlruns"])
def test_runs_beside_the_server_are_found(name, settings, monkeypatch, tmp_path):
    """In a chapter's folder or in the current one, with how to look into it; the server's own are none."""
    (settings.state / "mlflow.db").touch()
    assert of(shell.examine(settings), "stray runs").verdict == OK
    monkeypatch.chdir(tmp_path)
    for folder in (settings.root / "3_projects" / "lr", tmp_path):
        (folder / name).mkdir()
        assert_look(of(shell.examine(settings), "stray runs"), str(folder / name), f"rm -r {folder / name}")
        (folder / name).rmdir()


def test_programs_of_another_environment_are_found(settings, monkeypatch, tmp_path):
    """An activated environment that has an `mlflow` of its own; none on PATH is worth a look."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mlflow").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "mlflow").chmod(0o755)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert_wrong(of(shell.examine(settings), "programs"), str(tmp_path / "bin" / "mlflow"), "deactivate")
    (tmp_path / "bin" / "mlflow").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert_look(of(shell.examine(settings), "programs"), f"{BIN} are not on PATH", "config --export")


def test_code_from_elsewhere_is_found(settings, monkeypatch, tmp_path):
    """Another clone's package, and a PYTHONPATH that goes before what is installed."""
    assert_look(of(shell.examine(settings), "package"), str(ROOT), "make run")
    here = settings.model_copy(update={"root": ROOT})
    assert of(shell.examine(here), "package").verdict == OK
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    assert_look(of(shell.examine(here), "package"), str(tmp_path), "unset PYTHONPATH")


# -- kernels -----------------------------------------------------------------------------------------------------------
def install_kernel(folder: Path, name: str, program: str) -> None:
    """Write a kernel of the usual display name as JupyterLab finds it."""
    place = folder / "kernels" / name
    place.mkdir(parents=True)
    argv = [program, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec))


def test_stale_kernel_is_found(settings, monkeypatch, tmp_path):
    """A kernel of the same name whose Python is gone, or another: notebooks would start that one."""
    for program in ("/nowhere/bin/python", shutil.which("sh")):
        shutil.rmtree(tmp_path / "kernels", ignore_errors=True)
        install_kernel(tmp_path, "python3", program)
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        found = of(kernels.examine(), "kernel")
        assert_wrong(found, program, "jupyter kernelspec remove python3")
        assert ("which is not there" in found.found) == (program == "/nowhere/bin/python")


def test_kernels_that_look_the_same_are_found(settings, monkeypatch, tmp_path):
    """Another one of the same display name: which of the two is chosen in the menu is luck."""
    install_kernel(tmp_path, "last-year", "/nowhere/bin/python")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert_look(of(kernels.examine(), "kernel"), "2 kernels", "jupyter kernelspec remove last-year")


# -- servers -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def other_clone(settings, tmp_path) -> Iterator[Path]:
    """A process that another clone's `up` started, on the port that this one wants for MLflow: its state folder."""
    environment = clean_environment() | {MARK: str(tmp_path / "state")}
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(settings.mlflow_port)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **silent) as process:
        deadline = time.monotonic() + 20
        while not find_holders(settings, settings.mlflow_port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield tmp_path / "state"
        process.kill()


def test_port_that_is_held_is_told_with_its_holder(settings):
    """Nothing is wrong with that, `up` moves on; but who it is, is said."""
    with socket.create_server(("127.0.0.1", settings.dashboard_port)):
        found = of(servers.examine(settings), "dashboard")
        assert found.verdict == OK
        assert f"port {settings.dashboard_port} is held by" in found.found
        assert f"process {os.getpid()}" in found.found


def test_server_of_another_clone_is_told(settings, other_clone):
    """Before `up` its port is just taken; once ours is said to listen there, everything would go to the other."""
    found = of(servers.examine(settings), "mlflow")
    assert found.verdict == OK
    assert f"is held by another clone: {other_clone}, " in found.found
    settings.ports_file.write_text("{}")
    assert_wrong(of(servers.examine(settings), "mlflow"), str(other_clone), "workshop down, then workshop up")


def test_servers_that_do_not_answer_are_found(settings):
    """They were started, and something ended them all: each is named with its log."""
    settings.ports_file.write_text("{}")
    for service in SERVICES:
        assert_wrong(of(servers.examine(settings), service.name), "workshop up", f"{service.name}.log")
