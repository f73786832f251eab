"""Code that runs on the worker: the Dask task of a notebook, and the kernels."""
