"""papermill's door to the engine; light, because each `import papermill` comes through it."""

from __future__ import annotations


def __getattr__(name: str):
    """Make the class `DaskEngine` when papermill asks for it, a part of its own import.

    Its base class is there by then, and nothing else is needed yet: so it does not matter whether papermill or a
    module of this package is imported first.
    """
    if name != "DaskEngine":
        raise AttributeError(name)
    from papermill.engines import Engine

    class DaskEngine(Engine):
        """Runs a notebook as one task on a Dask cluster; registered as the papermill engine `dask`."""

        @classmethod
        def execute_notebook(cls, nb, kernel_name, **options):
            """Run a notebook; arguments, result and errors are those of papermill's own engine."""
            from papermill_dask import engine

            return engine.execute_notebook(nb, kernel_name, **options)

    globals()[name] = DaskEngine
    return DaskEngine
