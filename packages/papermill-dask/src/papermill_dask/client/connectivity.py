"""Diagnose lost connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from papermill_dask import compat

if TYPE_CHECKING:
    from distributed import Client


def connection_problem(client: Client, worker: str, seconds: float) -> str | None:
    """Return why a worker is unreachable; None if it is reachable, even if it or the scheduler is busy."""

    async def probe(dask_scheduler: Any) -> str | None:
        # Dask pickles this function by value, so the scheduler does not need this package.
        import asyncio
        import socket

        from distributed.comm.addressing import get_address_host_port

        if worker not in dask_scheduler.workers:
            return "The Dask worker that ran the notebook was lost."
        try:
            (await asyncio.to_thread(socket.create_connection, get_address_host_port(worker), seconds)).close()
        except OSError:
            return "The network connection to the Dask worker failed."
        except ValueError:  # workers in the scheduler's process have no network address
            pass
        return None

    if client.status != "running":
        return "The Dask scheduler was lost."
    try:
        return compat.run_on_scheduler(client, probe, seconds + 1)
    except (OSError, TimeoutError):
        is_up = compat.is_listening(compat.scheduler_of(client).address, seconds)
        return None if is_up else "The network connection to the Dask scheduler failed."
