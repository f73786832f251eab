"""The worker: the Dask task that runs a notebook, and its kernels."""
