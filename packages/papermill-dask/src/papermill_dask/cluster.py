"""The Dask cluster to run on: connecting to it, what its workers are, and whether they can still be reached."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop.errors import EngineError
from workshop.ownership import require_own
from workshop.settings import get_settings

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("papermill")  # what the engine has to say stands among papermill's own lines
CONNECT_SECONDS = 10
ANSWER_SECONDS = 15
ENDING_SECONDS = 60
MARGIN_SECONDS = 1.0
WAIT_SECONDS = 0.2
NOTEBOOK = "notebook"  # the Dask resource of which each notebook takes one unit
PACKAGES = ("papermill", "nbclient", "jupyter_client", "ipykernel", "workshop")


@dataclass(frozen=True)
class Worker:
    """A worker of the cluster, as it describes itself; ``problems`` say why no notebook can run on it."""

    address: str
    name: str
    threads: int
    memory: int
    resources: dict[str, float]
    sees_folder: bool = False
    is_local: bool = False
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        resources = ", ".join(f"{name}={amount:g}" for name, amount in sorted(self.resources.items())) or "none"
        return f"{self.name} ({self.address}): memory {self.memory / 2**30:.1f} GiB, resources {resources}"


@contextlib.contextmanager
def connect() -> Iterator[Client]:
    """Yield a client of the cluster to run on; close what was opened for the call.

    That is DASK_SCHEDULER_ADDRESS (or Dask's own configuration), else the cluster that `workshop up` started, else a
    local one of one worker for the call. Raises EngineError when the scheduler does not answer or has no worker.
    """
    import dask
    from distributed import Client, LocalCluster

    # papermill logs at INFO; what Dask's own parts say at that level is not about the notebook.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # tracebacks of what we tell in words
    address, settings = dask.config.get("scheduler-address", None), get_settings()
    is_exported = address == settings.dask_scheduler_address and settings.given_scheduler_address is None
    if settings.is_up if address is None else is_exported:
        require_own(settings, settings.dask_port)
        address = settings.scheduler_address
    with contextlib.ExitStack() as stack:
        if address is None:
            logger.info("No scheduler address is set: starting a local Dask cluster for this notebook.")
            # Dask's own default for the page, ":0", listens on every interface.
            cluster = LocalCluster(
                n_workers=1, threads_per_worker=1, resources={NOTEBOOK: 1}, dashboard_address="127.0.0.1:0"
            )
            stack.enter_context(cluster)
            address = cluster.scheduler_address
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise EngineError(
                "The Dask scheduler does not answer.",
                value=f"{address} ({error})",
                expected="the address of a running scheduler; tls:// needs Dask's TLS settings (distributed.comm.tls)",
                next_step="`workshop up` starts one; DASK_SCHEDULER_ADDRESS names another",
            ) from None
        stack.enter_context(client)
        require_worker(client)
        yield client


def require_worker(client: Client, seconds: float = 0) -> None:
    """Wait until the cluster has a worker; raise EngineError when it has none within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not client.scheduler_info(n_workers=1)["workers"]:
        if time.monotonic() >= deadline:
            raise EngineError(
                "The Dask cluster has no worker.",
                value=client.scheduler.address,
                expected="at least one worker",
                next_step="`workshop status` shows what runs; a worker's log lies in server/state/logs",
            )
        time.sleep(WAIT_SECONDS)


def survey(client: Client, kernel_name: str | None = None, folder: Path | None = None) -> list[Worker]:
    """Ask every worker what it is, whether it has the kernel and sees ``folder``; compare it with this environment.

    What differs is listed in a worker's ``problems``, in words, before anything of ours is unpickled there.
    """
    known = client.scheduler_info(n_workers=-1)["workers"]
    with _sign_in(folder) as sign:
        # The function goes as text to `eval`: a worker with another Python, or without this package, could not
        # unpickle it, and to find that out is the purpose.
        given = {"source": DESCRIBE, "scope": {}, "packages": list(PACKAGES), "sign": sign}
        call = "(exec(source, scope), scope['_describe'](packages, sign))[1]"
        answers = client.sync(_ask, client, list(known), eval, call, given)
    here = _describe(list(PACKAGES), sign, lists_kernels=False)  # to look for them takes a while, and nobody asks
    return [_worker(address, known[address], answers[address], here, kernel_name) for address in answers]


async def _ask(client: Client, workers: list[str], function: Callable, *arguments: Any) -> dict[str, Any]:
    """Call a function on workers as `Client.run` does; give what each returns, or the error that kept it from that."""

    async def ask(worker: str) -> Any:
        try:  # each for itself: one that hangs must not keep the others waiting for long
            asked = client._run(function, *arguments, workers=[worker], on_error="return")
            return (await asyncio.wait_for(asked, ANSWER_SECONDS))[worker]
        except OSError as error:
            return error

    return dict(zip(workers, await asyncio.gather(*map(ask, workers)), strict=True))


def _describe(packages, sign, lists_kernels=True):
    """Return what this process is; runs on a worker, which may have none of our packages and another Python."""
    import contextlib
    import importlib.metadata
    import pathlib
    import sys

    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    kernels = []
    with contextlib.suppress(ImportError):
        if lists_kernels:
            from jupyter_client.kernelspec import find_kernel_specs

            kernels = sorted(find_kernel_specs())
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {pathlib.Path('/proc/self/ns/net').readlink()}"
    except OSError:
        import uuid

        machine = str(uuid.getnode())
    return {
        "python": "{}.{}".format(*sys.version_info),
        "versions": versions,
        "kernels": kernels,
        "machine": machine,
        "sees": sign is not None and pathlib.Path(sign).exists(),
    }


DESCRIBE = inspect.getsource(_describe)  # now, while the file is still what was imported


@contextlib.contextmanager
def _sign_in(folder: Path | None) -> Iterator[str | None]:
    """Put an empty file into ``folder`` for a moment: who finds it there sees the same folder."""
    if folder is None or not os.access(folder, os.W_OK):
        yield None
        return
    with tempfile.NamedTemporaryFile(prefix=".workshop-seen-", dir=folder) as sign:
        yield sign.name


def _worker(address: str, known: dict, answer: Any, here: dict, kernel_name: str | None) -> Worker:
    described = isinstance(answer, dict)
    return Worker(
        address=address,
        name=str(known["name"]),
        threads=known["nthreads"],
        memory=known["memory_limit"] or 0,
        resources=known.get("resources", {}),
        sees_folder=described and answer["sees"],
        is_local=described and answer["machine"] == here["machine"],
        problems=_differences(answer, here, kernel_name) if described else [f"does not answer: {answer!r}"],
    )


def _differences(there: dict, here: dict, kernel_name: str | None) -> list[str]:
    found = []
    if there["python"] != here["python"]:
        found.append(f"Python {there['python']} instead of {here['python']}")
    for package, version in here["versions"].items():
        if there["versions"][package] != version:
            found.append(f"{package} {there['versions'][package] or 'not installed'} instead of {version}")
    if kernel_name and kernel_name not in there["kernels"]:
        found.append(f"no kernel `{kernel_name}` (it has: {', '.join(there['kernels']) or 'none'})")
    return found


def lost_contact(client: Client, worker: str, seconds: float) -> str | None:
    """Say why a worker cannot be reached; None when it can, however busy it or the scheduler is."""

    async def probe(dask_scheduler) -> str | None:
        # A function made here travels by value: the scheduler need not have this package.
        import asyncio
        import socket

        from distributed.comm.addressing import get_address_host_port

        if worker not in dask_scheduler.workers:
            return "The Dask worker that ran the notebook was lost."
        try:
            connection = await asyncio.to_thread(socket.create_connection, get_address_host_port(worker), seconds)
            connection.close()
        except OSError:
            return "The network to the Dask worker is cut."
        except ValueError:  # no address of a host: a worker in the scheduler's own process
            pass
        return None

    try:
        return client.sync(client._run_on_scheduler, probe, callback_timeout=seconds + MARGIN_SECONDS)
    except (OSError, TimeoutError):
        return None if listens(client.scheduler.address, seconds) else "The network to the Dask scheduler is cut."


def listens(address: str, seconds: float) -> bool:
    """Tell whether a Dask server accepts connections, as the system does for it even when it is too busy to answer."""
    import socket

    from distributed.comm.addressing import get_address_host_port

    try:
        socket.create_connection(get_address_host_port(address), seconds).close()
    except OSError:
        return False
    except ValueError:  # no address of a host: a server in this very process
        pass
    return True


def running(client: Client) -> list[dict[str, Any]]:
    """Return the notebooks that run on the cluster now: notebook, worker, cell, cells, since (UTC)."""
    from papermill_dask import worker as there

    workers = client.scheduler_info(n_workers=-1)["workers"]
    answers = client.sync(_ask, client, list(workers), there.running)
    return [{**row, "worker": worker} for worker, rows in answers.items() if isinstance(rows, list) for row in rows]


def wait_for_stage(client: Client, stage: str | None) -> None:
    """Wait until a DVC stage's notebook, whose client was killed, has ended on its worker; None waits for nothing.

    Raises EngineError when it does not end.
    """
    from papermill_dask import worker as there

    deadline = time.monotonic() + ENDING_SECONDS
    while stage:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        busy = [worker for worker, runs in client.sync(_ask, client, list(workers), there.runs_stage, stage).items()
                if runs is True]  # fmt: skip
        if not busy:
            return
        if time.monotonic() > deadline:
            raise EngineError(
                "An earlier run of this stage does not end.",
                value=f"{stage} on {', '.join(busy)}",
                expected=f"its end within {ENDING_SECONDS} s of its client's",
                next_step="see the worker's log; `workshop down` and `workshop up` end it",
            )
        time.sleep(WAIT_SECONDS)
