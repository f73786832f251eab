"""The Dask cluster: connecting to it, its workers, and a slot for a notebook on one of them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pkgutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, Event, LocalCluster, Semaphore
from jupyter_client.kernelspec import NoSuchKernel

from papermill_dask import compat, tracking
from papermill_dask.config import NOTEBOOK, SECTION
from papermill_dask.description import describe, installed_versions
from papermill_dask.failures import LOST, EngineError, WorkerLost

logger = logging.getLogger("papermill")  # the engine's lines appear among papermill's own
CONNECT_SECONDS = 10
ANSWER_SECONDS = 15.0
RETRY_SECONDS = 0.1
SILENT = "has not answered yet"
NO_WORKER_SECONDS = 0.5
DEMAND_SECONDS = 1.0
WAITING = "notebook-waiting"  # the name of tasks, and of a resource that no worker has
LEASE_SECONDS = 6
_registering, _making = threading.Lock(), threading.Lock()


class KernelMissing(EngineError, NoSuchKernel):
    """No worker has the kernel; papermill's own engine raises NoSuchKernel in this case."""


@dataclass(frozen=True)
class Worker:
    """A worker of the cluster, as it describes itself; ``problems`` say why no notebook can run on it.

    ``notebooks`` is how many it runs in parallel; ``id`` differs for each process at the same address.
    """

    address: str
    name: str
    notebooks: int
    id: str | None = None
    sees_folder: bool = False
    running: list[dict[str, Any]] = field(default_factory=list)
    log: str = ""
    problems: list[str] = field(default_factory=list)
    lent_by: str | None = None  # the key of the notebook that runs this one, and lends its slot

    def __str__(self) -> str:
        return f"{self.name} ({self.address}): {'; '.join(self.problems)}"


@contextlib.contextmanager
def connect(notebooks: int = 1) -> Iterator[Client]:
    """Yield a client of the cluster to run on; close what was opened for the call.

    The cluster is that of the function in Dask's configuration (`papermill-dask.cluster`), or of the scheduler
    (DASK_SCHEDULER_ADDRESS), else a local one for this number of ``notebooks`` in parallel. Raises EngineError if the
    function cannot be used, or the scheduler does not answer or has no worker.
    """
    # papermill logs at INFO; Dask's own lines of that level are not about the notebook.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # These log tracebacks of errors that we report in words; tornado logs a lease that cannot be refreshed.
    for name in ("distributed.client", "distributed.comm.tcp", "distributed.semaphore", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address, function = dask.config.get("scheduler-address", None), dask.config.get(f"{SECTION}.cluster", None)
    client = None
    if tracking.TASK_VARIABLE in os.environ:  # a notebook runs others on its own cluster
        function = None
    with contextlib.ExitStack() as stack:
        if function is not None:
            made = _make(str(function), address)
            address, client = (made.cluster, made) if isinstance(made, Client) else (made, None)
            if address is not None:
                stack.callback(address.close)
        elif address is None:
            logger.info("No scheduler address is set: starting a local Dask cluster for this call.")
            address = stack.enter_context(_local_cluster(notebooks))
        try:
            client = client or compat.new_client(address, CONNECT_SECONDS)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise EngineError(
                "The Dask scheduler does not answer.",
                value=f"{address} ({error})",
                expected="the address of a running scheduler; tls:// needs Dask's TLS settings (distributed.comm.tls)",
                next_step="start one (`dask scheduler`), or set DASK_SCHEDULER_ADDRESS to another's address",
            ) from None
        stack.enter_context(client)
        require_worker(client)
        yield client


@contextlib.contextmanager
def _local_cluster(notebooks: int) -> Iterator[LocalCluster]:
    """Yield a cluster of one worker for this user alone, with a thread a processor; close it.

    Scheduler and worker are threads of this process: a process of their own would run the caller's script again, which
    needs `if __name__ == "__main__":`, and could not be started by a daemonic process. Whoever connects needs the key.
    By default Dask shares a folder with a known name among all users of the machine, and runs modules that it finds
    there.
    """
    parent = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="papermill-dask-", dir=parent, ignore_cleanup_errors=True) as folder:
        with _making, dask.config.set({"temporary-directory": folder}):
            # Dask's own default for the page, ":0", listens on every interface.
            options = {"dashboard_address": "127.0.0.1:0", "security": True, "protocol": "tls://"}
            cluster = LocalCluster(n_workers=1, resources={NOTEBOOK: notebooks}, processes=False, **options)
        with cluster:
            yield cluster


def _make(name: str, address: str | None) -> Any:
    """Return the client or the cluster that the configured function makes; raise EngineError if it cannot be used."""
    problem = None if address is None else f"is set, and so is the scheduler address {address}"
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        problem = f"cannot be imported: {error}"
    else:
        problem = problem or (None if callable(function) else f"is no function, but {function!r}")
    if not problem:
        made = function()
        if isinstance(made, Client) or hasattr(made, "scheduler_address"):
            return made
        problem = f"returned {made!r}"
    raise EngineError(
        "The function `papermill-dask.cluster` of Dask's configuration cannot be used.",
        value=f"{name} {problem}",
        expected="`module:function` that returns a Dask client or cluster, and no scheduler address beside it",
        next_step="correct the configuration; PYTHONPATH adds modules of your own, DASK_SCHEDULER_ADDRESS an address",
    )


def require_worker(client: Client, seconds: float = NO_WORKER_SECONDS) -> None:
    """Wait until the cluster has a worker; raise EngineError when it has none within ``seconds``.

    Wait on if a cluster object manages the workers, which may be starting, or start when there is work.
    """
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        with _demand(client) as has_manager:
            if has_manager:
                logger.info("Waiting for the first worker that the Dask cluster starts (with `adapt` or `scale`).")
                return client.wait_for_workers(1)
        raise EngineError(
            "The Dask cluster has no worker.",
            value=compat.scheduler_of(client).address,
            expected="at least one worker",
            next_step=f"`dask worker {compat.scheduler_of(client).address}` starts one",
        ) from None


# -- what the workers are ------------------------------------------------------------------------------------------
def query_workers(
    client: Client, kernel_name: str | None = None, folder: Path | None = None, request: dict[str, float] | None = None
) -> list[Worker]:
    """Ask every worker to describe itself, and compare it with this environment, the kernel and ``folder``.

    A worker must have the resources of ``request``. With a kernel, wait for slow workers until one is eligible.
    """
    answers: dict[str, Future[Any]] = {}
    say_once, seconds = functools.cache(logger.info), ANSWER_SECONDS
    with _marker_file(folder) as marker, contextlib.ExitStack() as stack:
        while True:
            try:
                # `client.scheduler_info` may return the answer to the client's own refresh, which lists no workers.
                identities = client.sync(compat.scheduler_of(client).identity)["workers"]
            except OSError as error:
                raise WorkerLost("The Dask scheduler was lost.", value=str(error), **LOST) from None
            if not identities:
                require_worker(client)
                continue
            for address in identities.keys() - answers.keys():
                answers[address] = compat.run_in_loop(client, _describe(client, address, marker))
                stack.callback(answers[address].cancel)
            wait([answers[address] for address in identities], seconds)
            workers = [
                _worker(address, identities, answers[address], kernel_name, request or {}) for address in identities
            ]
            slow = [worker.name for worker in workers if worker.problems == [SILENT]]
            if not kernel_name or not slow or any(not worker.problems for worker in workers):
                return workers
            say_once("Waiting for the answer of slow workers: %s.", ", ".join(slow))
            seconds = RETRY_SECONDS


async def _describe(client: Client, worker: str, marker: str | None) -> Any:
    """Ask a worker to `describe` itself, without a time limit; return its answer or the error."""
    answer = TimeoutError()
    try:
        # Dask's own errors, such as a slow connection, have no number; errors of the worker's system have one.
        while isinstance(answer, OSError) and not answer.errno:
            answer = await compat.ask_worker(client, worker, describe, marker)
    except Exception as error:  # noqa: BLE001 - any error is the worker's problem
        return error
    return answer


def _worker(
    address: str, identities: dict[str, Any], answer: Future[Any], kernel_name: str | None, request: dict[str, float]
) -> Worker:
    info, reply = identities[address], answer.result() if answer.done() else None
    facts = reply if isinstance(reply, dict) else {}
    problems = _differences(facts, kernel_name) if facts else [f"cannot answer: {reply!r}" if reply else SILENT]
    resources, slots = info.get("resources", {}), _slots(identities)[address]
    if not slots:
        problems.append(f"it runs no notebooks: others declare the resource `{NOTEBOOK}`, this one does not")
    for name, amount in request.items():
        if resources.get(name, 0) < amount:
            problems.append(f"resource {name}={resources.get(name, 0):g} instead of {amount:g}")
    about = facts.get("id"), facts.get("sees", False), facts.get("running", []), facts.get("log", "")
    return Worker(address, str(info["name"]), slots, *about, problems)


def _slots(identities: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return how many notebooks each worker runs in parallel."""
    has_resource = any(NOTEBOOK in worker.get("resources", {}) for worker in identities.values())
    return {
        address: int(worker.get("resources", {}).get(NOTEBOOK, 0)) if has_resource else worker["nthreads"]
        for address, worker in identities.items()
    }


def capacity(client: Client) -> int:
    """Return how many notebooks the cluster's workers run in parallel now."""
    return sum(_slots(client.sync(compat.scheduler_of(client).identity)["workers"]).values())


@contextlib.contextmanager
def _marker_file(folder: Path | None) -> Iterator[str | None]:
    """Put an empty file into ``folder`` while the block runs: a worker that finds it there sees the same folder."""
    if folder is None or not os.access(folder, os.W_OK):
        yield None
        return
    with tempfile.NamedTemporaryFile(prefix=".papermill-dask-", dir=folder) as marker:
        yield marker.name


def _differences(answer: dict[str, Any], kernel_name: str | None) -> list[str]:
    differences = [
        f"{package} {answer['versions'].get(package, 'not installed')} instead of {version}"
        for package, version in installed_versions().items()
        if answer["versions"].get(package) != version
    ]
    if kernel_name and kernel_name not in answer["kernels"]:
        differences.append(f"No such kernel named {kernel_name} (it has: {', '.join(answer['kernels']) or 'none'})")
    return differences


def running(client: Client) -> list[dict[str, Any]]:
    """Return the notebooks that run on the cluster now: notebook, worker, cell, cells, since (s since 1970)."""
    return [{**row, "worker": worker.address} for worker in query_workers(client) for row in worker.running]


def eligible_workers(workers: list[Worker]) -> list[Worker]:
    """Return the workers on which a notebook can run.

    Raises EngineError, with the problems of each worker, when there is none; KernelMissing when each lacks the kernel
    alone.
    """
    if choice := [worker for worker in workers if not worker.problems]:
        if len(choice) < len(workers):
            left_out = " | ".join(str(worker) for worker in workers if worker.problems)
            logger.warning("Workers that this notebook does not use: %s", left_out)
        return choice
    only_kernel = all(len(w.problems) == 1 and w.problems[0].startswith("No such kernel") for w in workers)
    raise (KernelMissing if only_kernel else EngineError)(
        "No worker of the cluster can run this notebook as it was asked to, and as it would run here.",
        value="what differs:\n" + "\n".join(f"    {worker}" for worker in workers),
        expected="workers with this environment's versions, the notebook's kernel, and the resources that it asks for",
        next_step="install the same where the workers run, or start one with the resources (`dask worker --resources`)",
    )


# -- a slot on a worker -------------------------------------------------------------------------------------------
@contextlib.contextmanager
def reserve_slot(client: Client, query: Callable[[], list[Worker]], request: dict[str, float]) -> Iterator[Worker]:
    """Wait until a worker has a free slot for a notebook; yield the worker, and keep the slot meanwhile.

    Dask would let a notebook wait behind a busy worker while another is free. So a notebook is submitted only when
    there is a slot: one of the leases of a worker's semaphore. ``query`` returns the workers; it is called again when
    the cluster changes. A notebook that runs others lends them its slot, one at a time, and its resources, if they
    cover the ``request``. Raises WorkerLost when no suitable worker is left.
    """
    began, say_once, addresses = time.monotonic(), functools.cache(logger.info), None
    leases: dict[str, Semaphore] = {}

    def release(lease: Semaphore) -> None:
        if client.status == "running":  # a lost scheduler has no leases
            lease.release()
            release_event.set()

    with client.as_current(), contextlib.ExitStack() as stack, contextlib.ExitStack() as demand:
        try:
            release_event = Event(f"{NOTEBOOK}-slot-released")
            while True:
                release_event.clear()
                if (tasks := client.processing()).keys() != addresses:
                    try:
                        workers = eligible_workers(query())
                    except EngineError as error:
                        if addresses is None or isinstance(error, WorkerLost):
                            raise
                        what = "All Dask workers that suit the notebook are gone."
                        raise WorkerLost(what, value=", ".join(addresses), **LOST) from None
                    addresses, lender = tasks.keys(), _lender(workers, request)
                free = sorted((w for w in workers if w.address in tasks), key=lambda worker: len(tasks[worker.address]))
                # Dask would never give another notebook the resources that the lender holds.
                for worker in [*([] if request and lender else free), *filter(None, [lender])]:
                    name = f"{NOTEBOOK}-slot-of-{worker.lent_by}" if worker.lent_by else f"{NOTEBOOK}s-{worker.address}"
                    if name not in leases:
                        leases[name] = _new_leases(name, worker.notebooks, stack)
                    if leases[name].acquire(timeout=0):
                        stack.callback(release, leases[name])
                        demand.close()
                        yield worker
                        return
                names = ", ".join(sorted({run["notebook"] for worker in workers for run in worker.running}))
                say_once(
                    "Waiting for a free worker: all that suit this notebook are busy%s.", names and f" with {names}"
                )
                if time.monotonic() - began > DEMAND_SECONDS:
                    demand.enter_context(_demand(client))
                    began = float("inf")
                release_event.wait(RETRY_SECONDS)  # killed clients do not set the event
        except OSError as error:
            if client.status == "running":
                raise
            raise WorkerLost("The Dask scheduler was lost.", value=str(error), **LOST) from None


def _lender(workers: list[Worker], request: dict[str, float]) -> Worker | None:
    """Return the worker and slot of the notebook that this process belongs to; None if its resources do not suffice."""
    key = os.environ.get(tracking.TASK_VARIABLE)
    for worker in workers:
        if any(run["key"] == key and request.items() <= run["resources"].items() for run in worker.running):
            return replace(worker, notebooks=1, lent_by=key)
    return None


def _new_leases(name: str, number: int, stack: contextlib.ExitStack) -> Semaphore:
    """Return a semaphore for slots; its leases are refreshed until the stack is closed."""
    # With Dask's default, the slot of a killed client would stay taken for 30 s.
    with _registering, dask.config.set({"distributed.scheduler.locks.lease-timeout": LEASE_SECONDS}):
        leases = Semaphore(number, name)
        leases.register()
    stack.callback(leases.refresh_callback.stop)
    return leases


@contextlib.contextmanager
def _demand(client: Client) -> Iterator[bool]:
    """Keep a task on the scheduler that no worker can run: for it, an adaptive cluster starts one more worker.

    Yield whether a cluster object, such as LocalCluster or GatewayCluster, manages the workers.
    """

    async def prepare(dask_scheduler: Any) -> bool:
        import dask

        # Dask starts a worker for each 5 s of work.
        dask.config.set({f"distributed.scheduler.default-task-durations.{WAITING}": "1 h"})
        return "worker-status" in dask_scheduler.plugins

    has_manager = client.cluster is not None or compat.ask_scheduler(client, prepare, ANSWER_SECONDS)
    task = client.submit(int, key=f"{WAITING}-{uuid.uuid4().hex[:8]}", resources={WAITING: 1}, pure=False)
    try:
        yield has_manager
    finally:
        task.release()


def this_output(output_path: object) -> str | None:
    """Return a name for a notebook's output, unique on the cluster; None if the output is not written."""
    if not isinstance(output_path, str) or output_path == "-":
        return None
    return output_path if "://" in output_path else f"{socket.gethostname()}:{Path(output_path).absolute()}"
