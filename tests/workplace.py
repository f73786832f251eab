"""A clone of this tree with its own ports, in which tests run servers and pipeline."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from workshop.servers import supervisor
from workshop.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "4_pipeline" / "tests"), str(ROOT / "tests")]  # for any importing module, also without pytest
from places import (  # noqa: E402, F401 - for the tests of the room, too
    BIN,
    PERSON,
    SETTINGS,
    Program,
    answer_of,
    clean_environment,
    environment_of,
    free_port,
    git,
    run_program,
    running,
    wait_for,
)
from programs import missing_powers, pytest_runtest_setup, required  # noqa: E402, F401 - likewise

if TYPE_CHECKING:
    from distributed import Client

SETTINGS.append("WORKSHOP_")  # also removed by `clean_environment`
PORTS = [name.removesuffix("_port").upper() for name in Settings.model_fields if name.endswith("_port")]
PASSIVE_PORTS = 40
# Temporary folders with fixed names, such as Dask's, which another user may create first.
TAKEN = ["dask-scratch-space", *(f"{name}-{os.getuid()}" for name in ("dask-scratch-space", "papermill-dask"))]
NEAR_PORTS = 200  # above a configured port: `workshop lab` takes the first free one
RUN_SECONDS = 600


def by_night(*values: object) -> list:
    """Mark parametrize values for `make night`; CI tests an equivalent one."""
    return [pytest.param(value, marks=pytest.mark.night) for value in values]


def is_near_wanted(port: int) -> bool:
    """Return whether `workshop up` or `workshop lab` may choose a port when the configured ones are busy."""
    defaults = [field.default for name, field in Settings.model_fields.items() if name.endswith("_port")]
    return any(0 <= port - each < NEAR_PORTS for each in [*defaults, 8888])


def free_passive_range() -> int:
    """Return the first of as many consecutive free ports as the FTP server needs."""
    for first in range(61000, 65000, PASSIVE_PORTS):
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + PASSIVE_PORTS):
                    probes.enter_context(contextlib.closing(socket.socket())).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free passive range")


def files_of_tree(*patterns: str) -> list[str]:
    """Return the files of this tree that git would commit, or those of them that match a pattern."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).exists()]


def copy_tree(folder: Path) -> Path:
    """Copy the files that git would commit to ``folder``, as a new repository."""
    for name in files_of_tree():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "A clone"]):
        git(folder, *words)
    return folder


def take_home(folder: Path, *options: str) -> Path:
    """Copy the pipeline by `make take-home NAME=plants` into a repository ``plants`` below ``folder``."""
    clone, home = copy_tree(folder / "clone"), folder / "plants"
    words = ["-o", ".venv/installed", f"BIN={BIN}", "take-home", f"TO={home}", "NAME=plants", *options]
    assert "git commit" not in run_program("make", *words, cwd=clone, env=os.environ | PERSON).stdout
    shutil.rmtree(clone)
    return home


def new_workplace(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a clone in ``folder`` and an environment with free ports for its servers."""
    return copy_tree(folder), environment_for(folder)


def environment_for(root: Path) -> dict[str, str]:
    """Return an environment with free ports for the servers of a clone."""
    environment = clean_environment() | {
        "WORKSHOP_ROOT": str(root),
        "PYTHONPATH": f"{root}{os.pathsep}{root / '4_pipeline'}",
    }
    environment |= {f"WORKSHOP_{name}_PORT": str(free_port()) for name in PORTS}
    environment["WORKSHOP_FTP_PASSIVE_FIRST"] = str(free_passive_range())
    environment["WORKSHOP_DASK_WORKERS"] = "2"
    environment["DASK_PAPERMILL_DASK__KERNEL_IMPORTS"] = "[]"  # saves ten seconds of both CPUs at each start
    return environment


def jupyter_in(runtime: Path) -> str | None:
    """Return the address of the Jupyter server of a runtime folder, or None while it does not respond."""
    addresses = [json.loads(file.read_text())["url"] for file in runtime.glob("jpserver-*.json")]
    return next((address for address in addresses if answer_of(f"{address}api")), None)


@contextlib.contextmanager
def frozen(port: int) -> Iterator[None]:
    """Suspend the process that listens on a port until the block ends, as swapping or a debugger would."""
    (pid,) = {
        each.pid for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }  # fmt: skip
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes whose command line or working directory is in ``folder``."""
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
    """A clone with running servers; ``output`` is that of `make run`."""

    root: Path
    environment: dict[str, str]
    output: str = ""

    @property
    def settings(self) -> Settings:
        """The settings as the clone's programs see them."""
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
        """Return the process of a service of `workshop status`."""
        return psutil.Process(next(row.pid for row in supervisor.status(self.settings) if row.name == service))

    def dask_client(self) -> Client:
        """Return a client of the cluster, with its key."""
        from distributed import Client, Security

        key = str(self.settings.dask_key)
        security = Security(tls_ca_file=key, tls_client_cert=key)
        return Client(self.settings.scheduler_address, security=security, set_as_default=False, timeout=60)

    def run(self, *command: str | Path, cwd: Path | None = None, **options) -> subprocess.CompletedProcess:
        """Run a program of this Python's environment in the clone, as `run_program` does."""
        options = {"timeout": RUN_SECONDS, "env": self.environment, "cwd": cwd or self.root} | options
        return run_program(*command, **options)
