"""Where the cells run: a task of Dask, and the kernels that it starts."""
