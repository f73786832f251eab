"""Why a worker cannot be reached, if it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from papermill_dask import compat

if TYPE_CHECKING:
    from distributed import Client


def lost_contact(client: Client, worker: str, seconds: float) -> str | None:
    """Return why a worker cannot be reached; None if it can, even if the worker or the scheduler is busy."""

    async def probe(dask_scheduler: Any) -> str | None:
        # Dask sends this function by value: the scheduler need not have this package.
        import asyncio
        import socket

        from distributed.comm.addressing import get_address_host_port

        if worker not in dask_scheduler.workers:
            return "The Dask worker that ran the notebook was lost."
        try:
            (await asyncio.to_thread(socket.create_connection, get_address_host_port(worker), seconds)).close()
        except OSError:
            return "The network to the Dask worker is cut."
        except ValueError:  # no address of a host: a worker in the scheduler's own process
            pass
        return None

    if client.status != "running":
        return "The Dask scheduler was lost."
    try:
        return compat.ask_scheduler(client, probe, seconds + 1)
    except (OSError, TimeoutError):
        is_there = compat.listens(compat.scheduler_of(client).address, seconds)
        return None if is_there else "The network to the Dask scheduler is cut."
