"""Notebooks on a Dask cluster."""
