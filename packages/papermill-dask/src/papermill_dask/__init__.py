"""Notebooks on any Dask cluster: `papermill IN OUT --engine dask`."""
