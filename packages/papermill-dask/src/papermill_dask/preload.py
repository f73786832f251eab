"""Worker preload module: `dask worker --preload papermill_dask.preload`."""

from papermill_dask.worker.warm_up import warm_up as dask_setup  # noqa: F401 - Dask calls this when the worker starts
