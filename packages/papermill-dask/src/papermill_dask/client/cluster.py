"""Connect to the Dask cluster, find suitable workers, and reserve a slot for a notebook."""

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
from papermill_dask.errors import LOST, EngineError, WorkerLost

logger = logging.getLogger("papermill")
CONNECT_SECONDS = 10
ANSWER_SECONDS = 15.0
RETRY_SECONDS = 0.1
NO_ANSWER = "has not answered yet"
NO_WORKER_SECONDS = 0.5
DEMAND_SECONDS = 1.0
WAITING = "notebook-waiting"  # key prefix of the queued tasks, and name of a resource that no worker has
LEASE_SECONDS = 6
# The dashboard and other pages of a short-lived cluster: their imports take 0.4 s.
NO_PAGES: dict[str, list[str]] = {f"distributed.{node}.http.routes": [] for node in ("scheduler", "worker")}
_register_lock, _create_lock = threading.Lock(), threading.Lock()


class KernelMissing(EngineError, NoSuchKernel):
    """No worker has the kernel; a subclass of NoSuchKernel, which papermill's own engine raises."""


@dataclass(frozen=True)
class Worker:
    """A worker of the cluster; ``problems`` are the reasons why it cannot run the notebook.

    ``notebooks`` is its number of slots; ``id`` is unique even if a new process reuses the address.
    """

    address: str
    name: str
    notebooks: int
    id: str | None = None
    sees_folder: bool = False
    running: list[dict[str, Any]] = field(default_factory=list)
    log: str = ""
    problems: list[str] = field(default_factory=list)
    lent_by: str | None = None  # task key of the notebook that starts this one and lends it the slot

    def __str__(self) -> str:
        return f"{self.name} ({self.address}): {'; '.join(self.problems)}"


@contextlib.contextmanager
def connect(notebooks: int = 1) -> Iterator[Client]:
    """Connect to the configured cluster, or start a local one; close them after the block.

    The cluster is the one that the configured function returns (`papermill-dask.cluster` in Dask's configuration), or
    else the one at the scheduler address (DASK_SCHEDULER_ADDRESS).

    Parameters
    ----------
    notebooks : int
        Number of notebooks that a local cluster runs in parallel.

    Yields
    ------
    distributed.Client
        A client of the cluster.

    Raises
    ------
    EngineError
        The configured function is invalid, the scheduler does not respond, or the cluster has no worker.
    """
    # papermill sets the log level to INFO, but Dask's INFO records are not about the notebook.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # Hide tracebacks of errors that become an EngineError, and tornado's messages about failed lease refreshes.
    for name in ("distributed.client", "distributed.comm.tcp", "distributed.semaphore", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address, function = dask.config.get("scheduler-address", None), dask.config.get(f"{SECTION}.cluster", None)
    client = None
    if tracking.TASK_VARIABLE in os.environ:  # in a notebook: use the cluster that runs it
        function = None
    with contextlib.ExitStack() as stack:
        if function is not None:
            created = _call_factory(str(function), address)
            address, client = (created.cluster, created) if isinstance(created, Client) else (created, None)
            if address is not None:
                stack.callback(address.close)
        elif address is None:
            logger.info("No scheduler address is set. Starting a local Dask cluster for this call.")
            address = stack.enter_context(local_cluster(notebooks))
        try:
            client = client or compat.new_client(address, CONNECT_SECONDS)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            raise EngineError(
                "The Dask scheduler does not respond.",
                value=f"{address} ({error})",
                expected="a running scheduler's address; for tls://, also Dask's TLS settings (distributed.comm.tls)",
                next_step="start a scheduler with `dask scheduler`, or correct DASK_SCHEDULER_ADDRESS",
            ) from None
        stack.enter_context(client)
        require_worker(client)
        yield client


@contextlib.contextmanager
def local_cluster(notebooks: int) -> Iterator[LocalCluster]:
    """Start a private cluster of one worker, with one thread per processor; close it after the block.

    The scheduler and the worker are threads of this process: processes would run the caller's script again, which would
    need `if __name__ == "__main__":`, and a daemonic process cannot start processes. Only clients with the TLS key can
    connect. A private folder replaces Dask's default, which all users share and from which Dask imports modules.
    """
    parent = Path(dask.config.get("temporary-directory", None) or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="papermill-dask-", dir=parent, ignore_cleanup_errors=True) as folder:
        with _create_lock, dask.config.set({"temporary-directory": folder, **NO_PAGES}):
            cluster = LocalCluster(
                n_workers=1, resources={NOTEBOOK: notebooks}, processes=False, security=True, protocol="tls://",
                dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            )  # fmt: skip
        with cluster:
            yield cluster


def _call_factory(name: str, address: str | None) -> Any:
    """Call the configured function and return its client or cluster; raise EngineError if the setting is invalid."""
    problem = None if address is None else f"is set together with the scheduler address {address}"
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        problem = f"cannot be imported: {error}"
    else:
        problem = problem or (None if callable(function) else f"is not a function but {function!r}")
    if not problem:
        created = function()
        if isinstance(created, Client) or hasattr(created, "scheduler_address"):
            return created
        problem = f"returned {created!r}"
    raise EngineError(
        "The setting `papermill-dask.cluster` in Dask's configuration is invalid.",
        value=f"{name} {problem}",
        expected="`module:function` that returns a Dask client or cluster; DASK_SCHEDULER_ADDRESS must be unset",
        next_step="correct the setting (add your modules to PYTHONPATH), or set only DASK_SCHEDULER_ADDRESS instead",
    )


def require_worker(client: Client, seconds: float = NO_WORKER_SECONDS) -> None:
    """Wait until the cluster has a worker; raise EngineError if it has none within ``seconds``.

    Wait without limit if a cluster object manages the workers, as they may still be starting, or start only on demand.
    """
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError:
        with _scale_up(client) as has_manager:
            if has_manager:
                logger.info("Waiting for the Dask cluster to start its first worker (by `adapt` or `scale`).")
                return client.wait_for_workers(1)
        raise EngineError(
            "The Dask cluster has no workers.",
            value=compat.scheduler_of(client).address,
            expected="at least one worker",
            next_step=f"start a worker: `dask worker {compat.scheduler_of(client).address}`",
        ) from None


# -- the workers ---------------------------------------------------------------------------------------------------
def query_workers(
    client: Client, kernel_name: str | None = None, folder: Path | None = None, request: dict[str, float] | None = None
) -> list[Worker]:
    """Query every worker, and compare it with this environment, the notebook's kernel and the requested resources.

    With a kernel name, wait for slow workers until at least one worker is eligible.
    """
    answers: dict[str, Future[Any]] = {}
    log_once, seconds = functools.cache(logger.info), ANSWER_SECONDS
    with _marker_file(folder) as marker, contextlib.ExitStack() as stack:
        while True:
            try:
                # `client.scheduler_info` may return the result of the periodic refresh, which lists no workers.
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
            slow = [worker.name for worker in workers if worker.problems == [NO_ANSWER]]
            if not kernel_name or not slow or any(not worker.problems for worker in workers):
                return workers
            log_once("Waiting for slow workers to respond: %s.", ", ".join(slow))
            seconds = RETRY_SECONDS


async def _describe(client: Client, worker: str, marker: str | None) -> Any:
    """Call `describe` on a worker, without a time limit; return the result or the error."""
    answer = TimeoutError()
    try:
        # Retry if the connection is slow: Dask's own errors have no errno, but an OSError from the worker has one.
        while isinstance(answer, OSError) and not answer.errno:
            answer = await compat.run_on_worker(client, worker, describe, marker)
    except Exception as error:  # noqa: BLE001 - any error makes the worker ineligible
        return error
    return answer


def _worker(
    address: str, identities: dict[str, Any], answer: Future[Any], kernel_name: str | None, request: dict[str, float]
) -> Worker:
    info, reply = identities[address], answer.result() if answer.done() else None
    details = reply if isinstance(reply, dict) else {}
    problems = _differences(details, kernel_name) if details else [f"cannot answer: {reply!r}" if reply else NO_ANSWER]
    resources, slots = info.get("resources", {}), _slots(identities)[address]
    if not slots:
        problems.append(f"runs no notebooks: does not declare the resource `{NOTEBOOK}`, but other workers do")
    for name, amount in request.items():
        if resources.get(name, 0) < amount:
            problems.append(f"resource {name}={resources.get(name, 0):g} instead of {amount:g}")
    state = details.get("id"), details.get("sees", False), details.get("running", []), details.get("log", "")
    return Worker(address, str(info["name"]), slots, *state, problems)


def _slots(identities: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return each worker's number of slots, by address."""
    has_resource = any(NOTEBOOK in worker.get("resources", {}) for worker in identities.values())
    return {
        address: int(worker.get("resources", {}).get(NOTEBOOK, 0)) if has_resource else worker["nthreads"]
        for address, worker in identities.items()
    }


def capacity(client: Client) -> int:
    """Return the cluster's current number of slots for notebooks."""
    return sum(_slots(client.sync(compat.scheduler_of(client).identity)["workers"]).values())


@contextlib.contextmanager
def _marker_file(folder: Path | None) -> Iterator[str | None]:
    """Create an empty file in ``folder`` during the block; a worker that sees the file shares the folder."""
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
        differences.append(f"No such kernel named {kernel_name} (installed: {', '.join(answer['kernels']) or 'none'})")
    return differences


def running(client: Client) -> list[dict[str, Any]]:
    """Return the notebooks that are running on the cluster.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster.

    Returns
    -------
    list of dict
        For each notebook: ``notebook`` (name), ``worker``, ``cell`` (number of the current cell), ``cells`` (number of
        cells), ``since`` (Unix time), ``output``, ``resources`` and ``key`` (of the Dask task).
    """
    return [{**row, "worker": worker.address} for worker in query_workers(client) for row in worker.running]


def eligible_workers(workers: list[Worker]) -> list[Worker]:
    """Return the workers without problems.

    If all workers have problems, raises EngineError with the problems, or KernelMissing if only the kernel is missing.
    """
    if choice := [worker for worker in workers if not worker.problems]:
        if len(choice) < len(workers):
            excluded = " | ".join(str(worker) for worker in workers if worker.problems)
            logger.warning("Workers not used for this notebook: %s", excluded)
        return choice
    only_kernel = all(len(w.problems) == 1 and w.problems[0].startswith("No such kernel") for w in workers)
    raise (KernelMissing if only_kernel else EngineError)(
        "No worker matches this environment, the kernel and the requested resources.",
        value="problems of the workers:\n" + "\n".join(f"    {worker}" for worker in workers),
        expected="a worker with this environment's versions, the notebook's kernel and the requested resources",
        next_step="install the same versions on the workers, or declare the resources (`dask worker --resources`)",
    )


# -- a slot on a worker -------------------------------------------------------------------------------------------
@contextlib.contextmanager
def reserve_slot(
    client: Client, query: Callable[[], list[Worker]], request: dict[str, float]
) -> Iterator[tuple[Worker, Callable[[], None]]]:
    """Wait for a free slot on a worker; yield the worker and a function that frees the slot before the block ends.

    Each worker has a semaphore with one lease per slot, because Dask itself could queue a notebook on a busy worker
    while another is free. ``query`` returns the workers, and is called again when the cluster changes. A notebook lends
    its slot to notebooks that it starts, one at a time, if its resources cover the ``request``. Raises WorkerLost if no
    suitable worker is left.
    """
    start, log_once, addresses = time.monotonic(), functools.cache(logger.info), None
    semaphores: dict[str, Semaphore] = {}

    def release(semaphore: Semaphore) -> None:
        if client.status == "running":  # without a scheduler there is no lease to release
            semaphore.release()
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
                        problem = "All suitable Dask workers were lost."
                        raise WorkerLost(problem, value=", ".join(addresses), **LOST) from None
                    addresses, lender = tasks.keys(), _lender(workers, request)
                free = sorted((w for w in workers if w.address in tasks), key=lambda worker: len(tasks[worker.address]))
                # If resources are requested, try only the lender's slot: Dask does not assign its resources twice.
                for worker in [*([] if request and lender else free), *filter(None, [lender])]:
                    name = f"{NOTEBOOK}-slot-of-{worker.lent_by}" if worker.lent_by else f"{NOTEBOOK}s-{worker.address}"
                    if name not in semaphores:
                        semaphores[name] = _slot_semaphore(name, worker.notebooks, stack)
                    if semaphores[name].acquire(timeout=0):
                        stack.callback(release, semaphores[name])
                        demand.close()
                        yield worker, stack.close
                        return
                names = ", ".join(sorted({run["notebook"] for worker in workers for run in worker.running}))
                log_once("Waiting for a free worker (all suitable ones are busy%s).", names and f" with {names}")
                if time.monotonic() - start > DEMAND_SECONDS:
                    demand.enter_context(_scale_up(client))
                    start = float("inf")
                release_event.wait(RETRY_SECONDS)  # retry regularly: a killed client does not set the event
        except OSError as error:
            if client.status == "running":
                raise
            raise WorkerLost("The Dask scheduler was lost.", value=str(error), **LOST) from None


def _lender(workers: list[Worker], request: dict[str, float]) -> Worker | None:
    """Return the worker whose notebook started this process; None if that notebook holds too few resources."""
    key = os.environ.get(tracking.TASK_VARIABLE)
    for worker in workers:
        if any(run["key"] == key and request.items() <= run["resources"].items() for run in worker.running):
            return replace(worker, notebooks=1, lent_by=key)
    return None


def _slot_semaphore(name: str, number: int, stack: contextlib.ExitStack) -> Semaphore:
    """Create a semaphore for ``number`` slots, whose leases are refreshed until the stack closes."""
    # With Dask's default timeout, a killed client would hold its slot for 30 s.
    with _register_lock, dask.config.set({"distributed.scheduler.locks.lease-timeout": LEASE_SECONDS}):
        semaphore = Semaphore(number, name)
        semaphore.register()
    stack.callback(semaphore.refresh_callback.stop)
    return semaphore


@contextlib.contextmanager
def _scale_up(client: Client) -> Iterator[bool]:
    """Make an adaptive cluster start one more worker by keeping a task queued that no worker can run.

    Yield whether a cluster object, such as LocalCluster or GatewayCluster, manages the workers.
    """

    async def prepare(dask_scheduler: Any) -> bool:
        import dask

        # Dask starts one worker per 5 s of expected work, so make the task look long.
        dask.config.set({f"distributed.scheduler.default-task-durations.{WAITING}": "1 h"})
        return "worker-status" in dask_scheduler.plugins

    has_manager = client.cluster is not None or compat.run_on_scheduler(client, prepare, ANSWER_SECONDS)
    task = client.submit(int, key=f"{WAITING}-{uuid.uuid4().hex[:8]}", resources={WAITING: 1}, pure=False)
    try:
        yield has_manager
    finally:
        task.release()


def output_id(output_path: object) -> str | None:
    """Return an id of the output file, unique on the cluster; None if no file is written."""
    if not isinstance(output_path, str) or output_path == "-":
        return None
    return output_path if "://" in output_path else f"{socket.gethostname()}:{Path(output_path).absolute()}"
