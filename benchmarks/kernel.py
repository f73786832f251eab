"""A kernel alone: seconds from its start to the end of its first cell, both kinds started on a worker."""

from __future__ import annotations

from benchmarks.measure import Side
from benchmarks.notebooks import import_lines
from benchmarks.place import Place
from benchmarks.rows import Ratio

TITLE = "A kernel until its imports are done"
STOCK_MANAGER = "jupyter_client.manager.AsyncKernelManager"
OUR_MANAGER = "papermill_dask.kernels.manager.KernelManager"
KERNEL_SECONDS = 120
TENSORFLOW = "import tensorflow"
COLD_TENSORFLOW, WARM_TENSORFLOW = "stock kernel, `import tensorflow`", "warm kernel, `import tensorflow`"
COLD_IMPORTS, WARM_IMPORTS = "stock kernel, the pipeline's imports", "warm kernel, the pipeline's imports"
ROWS = (
    Ratio("kernel with TensorFlow ready", COLD_TENSORFLOW, WARM_TENSORFLOW, 8),
    Ratio("kernel with the pipeline's imports ready", COLD_IMPORTS, WARM_IMPORTS),
)


def sides(place: Place) -> list[Side]:
    """Return jupyter_client's own kernel manager and ours, for TensorFlow and for what the pipeline imports."""
    imports = import_lines(place.pipeline / "notebooks")

    def side(name: str, manager: str, cell: str) -> Side:
        return Side(name, lambda: {"seconds": ready_seconds(place, manager, cell)}, place.wait_until_warm)

    return [
        side(COLD_TENSORFLOW, STOCK_MANAGER, TENSORFLOW),
        side(WARM_TENSORFLOW, OUR_MANAGER, TENSORFLOW),
        side(COLD_IMPORTS, STOCK_MANAGER, imports),
        side(WARM_IMPORTS, OUR_MANAGER, imports),
    ]


def ready_seconds(place: Place, manager_class: str, cell: str) -> float:
    """Start a kernel on a worker with a manager of that class, run a cell; return the seconds it took."""

    # A function made here travels by value: the workers do not have this package.
    async def run_first_cell() -> float:
        import time

        from traitlets.utils.importstring import import_item

        manager = import_item(manager_class)()
        began = time.perf_counter()
        await manager.start_kernel()
        client = manager.client()
        try:
            client.start_channels()
            await client.wait_for_ready(timeout=KERNEL_SECONDS)
            reply = await client.execute(cell, reply=True, timeout=KERNEL_SECONDS)
            seconds = time.perf_counter() - began
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=True)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(reply["content"]["evalue"])
        return seconds

    def run_on_worker() -> float:
        import asyncio

        return asyncio.run(run_first_cell())

    with place.client() as client:
        return client.submit(run_on_worker, pure=False).result()
