"""A clone of this tree with ports of its own: where the tests run the real thing."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from workshop.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PORTS = ("FTP", "MLFLOW", "DASK", "DASK_DASHBOARD", "DASHBOARD")
PASSIVE_PORTS = 40
NEAR_PORTS = 200  # above a wanted port: `workshop up` takes the first free one
PERSON = {f"GIT_{role}_{what}": "me@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
RUN_SECONDS = 600
START_SECONDS = 180  # of a program that starts on a busy machine


def required(what: str, answer: object) -> None:
    """Skip the test when a machine lacks something; fail it where CI promised that it is there."""
    if not answer:
        if os.environ.get("WORKSHOP_REQUIRE_ALL"):
            pytest.fail(f"{what} is missing, and WORKSHOP_REQUIRE_ALL is set")
        pytest.skip(f"{what} is not on this machine")


@functools.cache
def missing_powers() -> str:
    """Return why mounts and network namespaces are not possible here, or nothing where they are."""
    tried = "unshare --mount --net sh -ec 'mount -t tmpfs tmpfs /tmp; ip link add type veth'"
    done = subprocess.run(tried, shell=True, capture_output=True, text=True, check=False)
    return f"needs root that may mount and make networks: {tried}: {done.stderr}" if done.returncode else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a privileged test where the powers are missing; fail it where CI promised that they are there."""
    if item.get_closest_marker("privileged") and (reason := missing_powers()):
        (pytest.fail if os.environ.get("WORKSHOP_REQUIRE_PRIVILEGED") else pytest.skip)(reason)


def free_port() -> int:
    """Return a port that nobody listens on now, below those that outgoing connections take for a moment."""
    while True:
        port = secrets.choice(range(20000, 32000))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def is_near_wanted(port: int) -> bool:
    """Return whether `workshop up` or `workshop lab` is likely to choose a port when the wanted ones are busy."""
    defaults = [field.default for name, field in Settings.model_fields.items() if name.endswith("_port")]
    return any(0 <= port - each < NEAR_PORTS for each in [*defaults, 8888])


def free_passive_range() -> int:
    """Return the first of as many free ports in a row as the FTP server wants."""
    for first in range(61000, 65000, PASSIVE_PORTS):
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + PASSIVE_PORTS):
                    probes.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free passive range")


def clean_environment() -> dict[str, str]:
    """Return this environment without what points at servers or a stage, and with this Python's programs first."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WORKSHOP_", "MLFLOW_", "DASK_", "DVC_", "MAKE"))
    }
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    return environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "120"}


def files_of_tree(*patterns: str) -> list[str]:
    """Return the files of this tree that git would commit, or those that match a pattern."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).exists()]


def git(folder: Path, *words: str) -> str:
    """Run git in a folder as a person, and return what it prints."""
    done = subprocess.run(
        ["git", *words], cwd=folder, env=os.environ | PERSON, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_tree(folder: Path) -> Path:
    """Copy what git would commit of this tree into ``folder`` as a repository of its own."""
    for name in files_of_tree():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "A clone"]):
        git(folder, *words)
    return folder


def new_workplace(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a clone in ``folder`` and the environment in which its servers take free ports."""
    return copy_tree(folder), environment_for(folder)


def environment_for(root: Path) -> dict[str, str]:
    """Return the environment in which the servers of a clone take free ports."""
    environment = clean_environment() | {"WORKSHOP_ROOT": str(root), "PYTHONPATH": str(root)}
    environment |= {f"WORKSHOP_{name}_PORT": str(free_port()) for name in PORTS}
    environment["WORKSHOP_FTP_PASSIVE_FIRST"] = str(free_passive_range())
    environment["WORKSHOP_PORT_LOCK"] = str(free_port())  # other tests' clones need not wait for this one
    environment["WORKSHOP_DASK_WORKERS"] = "2"
    environment["DASK_PAPERMILL_DASK__KERNEL_IMPORTS"] = "[]"  # ten seconds of both processors at each start
    return environment


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what ``condition`` gives once that is true; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        before = time.process_time()
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s: {condition}"
        # A condition that takes long to look at must not take the processor from what it waits for.
        time.sleep(0.2 + 2 * (time.process_time() - before))


def answer_of(url: str) -> requests.Response | None:
    """Return the answer of a server, or None where no server answers, or not well."""
    try:
        answer = requests.get(url, timeout=20)
    except requests.RequestException:
        return None
    return answer if answer.ok else None


def jupyter_in(runtime: Path) -> str | None:
    """Return the address of the Jupyter server of a runtime folder once it answers, whichever port it took."""
    addresses = [json.loads(file.read_text())["url"] for file in runtime.glob("jpserver-*.json")]
    return next((address for address in addresses if answer_of(f"{address}api")), None)


@dataclass
class Program:
    """A running program: its process, the file of its output, and what ``ready`` of `running` returned."""

    process: subprocess.Popen
    log: Path
    ready: Any


@contextlib.contextmanager
def running(command: list, environment: dict[str, str], folder: Path, ready: Callable[[str], Any]) -> Iterator[Program]:
    """Run a program in ``folder`` until the block ends; wait first until ``ready``, given its output, is true."""
    log = Path(tempfile.mkdtemp()) / "output.log"
    with log.open("w") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, stdout=output, stderr=output)

    def ended_or_ready() -> Any:
        assert process.poll() is None, "the program ended"
        return ready(log.read_text())

    try:
        yield Program(process, log, wait_for(ended_or_ready, START_SECONDS))
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(log.parent)


@contextlib.contextmanager
def frozen(port: int) -> Iterator[None]:
    """Stop the process that listens on a port, as a machine that swaps or a debugger does; let it go on at the end."""
    (pid,) = {
        each.pid for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }  # fmt: skip
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Make ``variables`` this process's environment for a while."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose command line or folder lies in ``folder``."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and (
                str(folder) in " ".join(process.cmdline()) or process.cwd().startswith(str(folder))
            ):
                processes.append(process)
    return processes


@dataclass
class Servers:
    """A clone with everything running; ``output`` is what `make run` printed."""

    root: Path
    environment: dict[str, str]
    output: str = ""

    @property
    def settings(self) -> Settings:
        """The settings as the clone's own programs see them."""
        with environment_of(self.environment):
            return Settings()

    @property
    def tracking_uri(self) -> str:
        """The address of the tracking server."""
        return self.settings.tracking_uri

    @property
    def pipeline(self) -> Path:
        """The folder of `dvc.yaml`."""
        return self.root / "4_pipeline"

    def process_of(self, service: str) -> psutil.Process:
        """Return the process of a service, as `workshop status` names it."""
        rows = json.loads(self.run(BIN / "workshop", "status", "--json").stdout)["services"]
        return psutil.Process(next(row["pid"] for row in rows if row["name"] == service))

    def run(self, *command: str | Path, cwd: Path | None = None, **options) -> subprocess.CompletedProcess:
        """Run a program of this Python's environment in the clone; return it with its output as text."""
        options = {"timeout": RUN_SECONDS, "env": self.environment, "cwd": cwd or self.root} | options
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
