"""The entry point that papermill loads while it is itself being imported; so it imports nothing but what is needed."""

from __future__ import annotations


def __getattr__(name: str):
    """Make the class `DaskEngine` when papermill asks for it: its base class is there by then."""
    if name != "DaskEngine":
        raise AttributeError(name)
    from papermill.engines import Engine

    class DaskEngine(Engine):
        """Runs a notebook as one task on a Dask cluster; registered as the papermill engine `dask`."""

        @classmethod
        def execute_notebook(cls, nb, kernel_name, **options):
            """Run a notebook; arguments, result and errors are those of papermill's own engine."""
            from papermill_dask.engine import execute_notebook

            return execute_notebook(nb, kernel_name, **options)

    globals()[name] = DaskEngine
    return DaskEngine
