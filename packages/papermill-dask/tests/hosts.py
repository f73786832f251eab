"""Hosts simulated by network and mount namespaces, with clusters and clients that run on them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import dask.config
import nbformat
import psutil
from programs import BIN, clean_environment, end, wait_for

RUN_SECONDS = 240
MARK = "DVC_MARK"  # forwarded to the kernel as DVC_*, and inherited by its descendants


# -- hosts -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Host:
    """Where a process runs: this machine, or the network namespace ``name`` with its own, ``hidden`` folder."""

    name: str | None = None
    address: str = "127.0.0.1"
    hidden: Path | None = None
    hidden_size: str = "2g"

    def command(self, *words: str | Path) -> list[str]:
        """Return the command that runs ``words`` on this host."""
        if self.name is None:
            return [str(word) for word in words]
        # `ip netns exec` also creates a mount namespace, whose mounts are removed with its last process.
        mount = f"cd / && mount -t tmpfs -o size={self.hidden_size} tmpfs {self.hidden} && "
        script = mount if self.hidden else ""
        return ["ip", "netns", "exec", self.name, "sh", "-c", f'{script}exec "$@"', "sh", *map(str, words)]

    def disconnect(self) -> None:
        """Take down the host's only network link."""
        _ip("-n", self.name, "link", "set", "eth0", "down")


THIS = Host()


@dataclass(frozen=True)
class Hosts:
    """Three hosts; worker and client can reach only the scheduler."""

    scheduler: Host
    worker: Host
    client: Host


@contextlib.contextmanager
def new_hosts(folder: Path) -> Iterator[Hosts]:
    """Create three hosts; ``folder``, which has the client's files, is empty on the worker."""
    address = "10.99.0.1"
    name = f"notebooks-{secrets.token_hex(3)}"
    scheduler = Host(f"{name}-s", address)
    worker = Host(f"{name}-w", "10.99.1.2", folder)
    client = Host(f"{name}-c", "10.99.2.2")
    with contextlib.ExitStack() as stack:
        for host in (scheduler, worker, client):
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "delete", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        _ip("-n", scheduler.name, "address", "add", f"{address}/32", "dev", "lo")
        subprocess.run(scheduler.command("sysctl", "-qw", "net.ipv4.ip_forward=0"), check=True)
        for number, host in enumerate((worker, client), start=1):
            _ip("-n", scheduler.name, "link", "add", f"to{number}", "type", "veth", "peer", "eth0", "netns", host.name)
            _ip("-n", scheduler.name, "address", "add", f"10.99.{number}.1/24", "dev", f"to{number}")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", scheduler.name, "link", "set", f"to{number}", "up")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "route", "add", f"{address}/32", "via", f"10.99.{number}.1")
        yield Hosts(scheduler, worker, client)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Replace this process's environment, and Dask's configuration from it, during the block."""
    configuration = dask.config.collect(paths=[], env=variables)
    with mock.patch.dict(os.environ, variables, clear=True), dask.config.set(configuration):
        yield


# -- notebooks ---------------------------------------------------------------------------------------------------
def document(*sources: str, **metadata: Any) -> nbformat.NotebookNode:
    """Return a notebook of code cells, tagged by a first line `# tags: a b`."""
    document = nbformat.v4.new_notebook()
    document.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document.metadata.update(metadata)
    for number, source in enumerate(sources):
        cell = nbformat.v4.new_code_cell(source, id=f"cell-{number}")
        if result := re.match(r"# tags: (.*)", source):
            cell.metadata.tags = result[1].split()
        document.cells.append(cell)
    return document


def notebook(file: Path, *sources: str, **metadata: Any) -> Path:
    """Write a `document` to a file and return its path."""
    nbformat.write(document(*sources, **metadata), file)
    return file


@dataclass
class Client:
    """A process that runs one notebook; ``mark`` is in the environment of all its descendants."""

    process: subprocess.Popen
    output: Path
    log: Path
    mark: str

    @property
    def document(self) -> nbformat.NotebookNode:
        """The executed notebook as currently saved."""
        return nbformat.read(self.output, as_version=4)

    @property
    def cells(self) -> list[str]:
        """The status of each cell in papermill's metadata."""
        return [cell.metadata.papermill.status for cell in self.document.cells]

    @property
    def words(self) -> str:
        """The client's output so far."""
        return self.log.read_text()

    def text(self, cell: int = 0) -> str:
        """Return a cell's stream outputs as currently saved; empty if there are none yet."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return "".join(output.get("text", "") for output in self.document.cells[cell].outputs)
        return ""

    def wait_for_text(self, text: str, cell: int = 0) -> None:
        """Wait until ``text`` is in the saved outputs of a cell."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.words
            return text in self.text(cell)

        wait_for(is_there, what=f"the output {text!r}")

    def wait(self, seconds: float = RUN_SECONDS) -> int:
        """Wait for the client to end; return its exit code."""
        return self.process.wait(seconds)

    def descendants(self) -> list[psutil.Process]:
        """Return the kernel and its descendants that are alive on any host."""
        return [process for process in marked(self.mark) if not self._is_client(process)]

    def _is_client(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return self.process.pid in (process.pid, *(parent.pid for parent in process.parents()))
        return False

    def assert_nothing_left(self, seconds: float) -> None:
        """Fail unless the kernel and its descendants end within ``seconds``."""
        wait_for(lambda: not self.descendants(), seconds)


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that were started with ``mark`` in their environment."""
    result = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                result.append(process)
    return result


# -- clusters ----------------------------------------------------------------------------------------------------
@dataclass
class Cluster:
    """A scheduler and workers as processes on hosts, with their logs in ``folder``."""

    folder: Path
    environment: dict[str, str] = field(repr=False)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    client_host: Host = THIS
    address: str = ""

    def start_scheduler(self, host: Host = THIS, protocol: str = "tcp", **environment: str) -> subprocess.Popen:
        """Start the scheduler and wait for its address."""
        file = self.folder / "scheduler.json"
        options = ["--protocol", protocol, "--host", host.address, "--port", "0", "--no-dashboard"]
        process = self._start("scheduler", host, "scheduler", *options, "--scheduler-file", file, **environment)
        wait_for(lambda: file.exists() and file.read_text())
        self.address = json.loads(file.read_text())["address"]
        self.environment["DASK_SCHEDULER_ADDRESS"] = self.address
        return process

    def start_worker(
        self,
        name: str,
        *options: str,
        host: Host = THIS,
        resources: str | None = "notebook=1",
        nanny: bool = False,
        threads: int = 1,
        program: tuple[str | Path, ...] = (BIN / "dask",),
        disk: Path | None = None,
        **environment: str,
    ) -> subprocess.Popen:
        """Start a worker with its local directory in ``disk``, and wait until it is registered."""
        disk = disk or host.hidden or self.folder
        words = ["worker", self.address, "--name", name, "--nthreads", str(threads), "--no-dashboard", *options]
        words += ["--host", host.address, "--local-directory", str(disk)]
        words += ["--resources", resources] if resources else []
        words += ["--nanny"] if nanny else ["--no-nanny"]
        if host.hidden:  # this machine's folders are hidden there
            environment = {"TMPDIR": str(host.hidden)} | environment
        process = self._start(name, host, *words, program=program, **environment)
        log = self.folder / f"{name}.log"

        def is_registered() -> bool:
            assert process.poll() is None, log.read_text()
            return "Registered to:" in log.read_text()

        wait_for(is_registered, what=f"the worker {name}")
        return process

    def _start(self, name: str, host: Host, *words, program=(BIN / "dask",), **environment: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("w") as log:
            process = self.processes[name] = subprocess.Popen(
                host.command(*program, *words),
                cwd=self.folder,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return process

    def start(self, source: Path, *options: str | Path, output: str = "output.ipynb", **environment: str) -> Client:
        """Start `papermill --engine dask` for a notebook, in its folder; ``environment`` is added to the client's."""
        target = source.parent / output
        words = [BIN / "papermill", source, target, "--engine", "dask", "--no-progress-bar", *options]
        return self.start_client(words, source.parent, target, **environment)

    def start_client(self, words: list[str | Path], folder: Path, output: Path, **environment: str) -> Client:
        """Start a program that runs a notebook on this cluster, on the client's host."""
        mark = secrets.token_hex(8)
        log = self.folder / f"client-{mark}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                self.client_host.command(*words),
                cwd=folder,
                env=self.environment | environment | {MARK: mark},
                stdout=file,
                stderr=file,
                start_new_session=True,
                # Background jobs of a shell ignore SIGINT, and these tests may be one.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        return Client(process, output, log, mark)

    def run(self, source: Path, *options: str | Path, **environment: str) -> Client:
        """Run a notebook to its end."""
        client = self.start(source, *options, **environment)
        client.wait()
        return client

    def stop(self, name: str) -> None:
        """End a process of the cluster and its descendants."""
        end(self.processes.pop(name))


@contextlib.contextmanager
def new_cluster(folder: Path, client_host: Host = THIS, **environment: str) -> Iterator[Cluster]:
    """Yield a cluster without processes; end them after the block, and check that nothing is left."""
    folder.mkdir(parents=True, exist_ok=True)
    # Cold kernels: starting a warm process would cost ten seconds per worker.
    common = {"DASK_PAPERMILL_DASK__KERNEL_IMPORTS": "[]", "TMPDIR": str(folder)}
    common |= {"IPYTHONDIR": str(folder / "ipython"), "TQDM_DISABLE": "1"}
    cluster = Cluster(folder, clean_environment() | common | environment, client_host=client_host)
    cluster.environment.pop("PYTEST_CURRENT_TEST", None)
    try:
        yield cluster
    finally:
        for name in list(cluster.processes)[::-1]:
            cluster.stop(name)
    for sockets in ("kernel-*", "papermill-dask-*"):
        wait_for(lambda pattern=sockets: not list(folder.glob(pattern)), 10, f"the folders {sockets} to go")
