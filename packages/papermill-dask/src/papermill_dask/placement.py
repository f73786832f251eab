"""Placing notebooks: which workers suit one, how many run at once, and which worker takes the next."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jupyter_client.kernelspec import NoSuchKernel

from papermill_dask.cluster import NOTEBOOK, Worker, logger
from workshop.errors import EngineError
from workshop.settings import NotebookOptions

if TYPE_CHECKING:
    from distributed import Client

BOOKED_SECONDS = 0.5  # a submitted task is there long before
PLACE_SECONDS = 5.0


class KernelMissing(EngineError, NoSuchKernel):
    """No worker has the kernel; papermill's own engine raises NoSuchKernel where there is none."""


def select(workers: list[Worker], options: NotebookOptions, kernel_name: str) -> list[Worker]:
    """Return the workers on which a notebook with these options can run.

    Raises EngineError at once, with what there is, when no worker has what is asked for, or all differ from this
    environment; KernelMissing when the kernel is all that they lack.
    """
    fit = [worker for worker in workers if not worker.problems]
    if not fit:
        listed = "\n".join(f"    {worker.name} ({worker.address}): {'; '.join(worker.problems)}" for worker in workers)
        only_kernel = all(len(w.problems) == 1 and w.problems[0].startswith("no kernel") for w in workers)
        what = "No worker of the cluster can run this notebook as it would run here."
        raise (KernelMissing if only_kernel else EngineError)(
            f"No such kernel named {kernel_name}. {what}" if only_kernel else what,
            value=f"what differs:\n{listed}",
            expected=f"workers with the kernel `{kernel_name}` and this environment's versions",
            next_step="install requirements.txt and the kernel where the workers run, then restart them",
        )
    for worker in workers:
        if worker.problems:
            logger.warning("The worker %s is left out: %s", worker.name, "; ".join(worker.problems))
    chosen = [worker for worker in fit if _has(worker, options)]
    if not chosen:
        raise EngineError(
            "No worker has what the notebook asks for.",
            value=_wishes(options),
            expected="something that one of these workers has:\n" + "\n".join(f"    {worker}" for worker in fit),
            next_step="start a worker that has it (`dask worker --resources`), or ask for less",
        )
    return chosen


def _has(worker: Worker, options: NotebookOptions) -> bool:
    if options.worker and options.worker not in (worker.name, worker.address):
        return False
    if worker.memory and worker.memory < options.memory:
        return False
    return all(worker.resources.get(name, 0) >= amount for name, amount in options.resources.items())


def _wishes(options: NotebookOptions) -> str:
    wishes = [f"worker {options.worker}"] if options.worker else []
    wishes += [f"memory {options.memory / 2**30:.1f} GiB"] if options.memory else []
    return ", ".join(wishes + [f"resource {name}={amount:g}" for name, amount in options.resources.items()])


@contextlib.contextmanager
def slot(client: Client, workers: list[Worker]) -> Iterator[dict[str, float]]:
    """Bound how many notebooks run at once; yield the Dask resources that one of them takes.

    A notebook leaves its worker's thread free, so Dask's own limit (one task a thread) no longer holds. Workers
    that declare the resource `notebook` are bounded by it; for others the clients take leases of a semaphore, as
    many as the whole cluster has threads.
    """
    if any(NOTEBOOK in worker.resources for worker in workers):
        yield {NOTEBOOK: 1}
        return
    from distributed import Semaphore

    most = slots(client)
    with client.as_current():
        # A semaphore keeps the size that it was made with, and refuses another: a cluster that grows gets a new one.
        leases = Semaphore(max_leases=most, name=f"workshop-notebooks-{most}")
        leases.acquire()
        try:
            yield {}
        finally:
            with contextlib.suppress(Exception):  # a scheduler that is gone has no leases to give back
                leases.release()


def slots(client: Client) -> int:
    """Return how many notebooks the cluster runs at once."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    declared = sum(int(worker.get("resources", {}).get(NOTEBOOK, 0)) for worker in workers)
    return declared or sum(worker["nthreads"] for worker in workers)


def place(client: Client, key: str, workers: list[str], resources: dict[str, float]) -> str | None:
    """Return the worker that shall take a task that is about to be submitted, and book it there.

    Dask itself goes by how long it expects a worker's threads to be busy. A notebook leaves its thread, so that all
    workers look idle, and one notebook would wait behind another while a worker has nothing to do. Once the task is
    submitted, this binds it to its worker no longer, and moves it, as Dask's work stealing does, if it waits while
    another worker has room. None when there is nothing to say; Dask's choice is then as good.
    """

    async def choose(dask_scheduler) -> str | None:
        # A function made here travels by value: the scheduler need not have this package. Nothing else happens on
        # the scheduler meanwhile, so two clients cannot be given the same room.
        import time

        stealing = dask_scheduler.extensions["stealing"]
        booked = dask_scheduler.extensions.setdefault("workshop-booked", {})
        for other, (_, until) in list(booked.items()):
            if other in dask_scheduler.tasks or until < time.monotonic():
                del booked[other]
        coming = [address for address, _ in booked.values()]
        coming += [moving["thief"].address for moving in stealing.in_flight.values()]

        def has_room(state, tasks: int = 1) -> bool:
            # What Dask itself counts as used is wrong once a task was moved.
            used = [task.resource_restrictions or {} for task in state.processing]
            return all(
                sum(amounts.get(name, 0) for amounts in used) + tasks * amount <= state.resources.get(name, 0)
                for name, amount in resources.items()
            )

        def load(state) -> tuple[bool, float]:
            arriving = coming.count(state.address)
            return not has_room(state, arriving + 1), (len(state.processing) + arriving) / state.nthreads

        states = [dask_scheduler.workers[address] for address in workers if address in dask_scheduler.workers]
        best = min((state for state in states if state.status.name == "running"), key=load, default=None)
        task = dask_scheduler.tasks.get(key)
        if best is None:
            return None
        if task is None:
            booked[key] = best.address, time.monotonic() + BOOKED_SECONDS
            return best.address
        dask_scheduler.set_restrictions({key: workers})
        there = task.processing_on
        waits = there is not None and task not in there.long_running and not has_room(there, 0)
        if waits and has_room(best, coming.count(best.address) + 1):
            stealing.move_task_request(task, there, best)
        return None

    return _ask_scheduler(client, choose, "No worker was chosen for %s: %r", key)


def give_back(client: Client, key: str) -> None:
    """End the booking of a task that has ended, which may be sooner than a booking does."""

    async def drop(dask_scheduler) -> None:
        dask_scheduler.extensions.get("workshop-booked", {}).pop(key, None)

    _ask_scheduler(client, drop, "The booking of %s was not given back: %r", key)


def _ask_scheduler(client: Client, function, complaint: str, key: str) -> str | None:
    try:
        return client.sync(client._run_on_scheduler, function, callback_timeout=PLACE_SECONDS)
    except Exception as error:  # noqa: BLE001 - a scheduler of another make, or one that is gone: then Dask decides
        logger.debug(complaint, key, error)
        return None
