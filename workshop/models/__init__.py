"""The life of a model: tracked, scored, put before the gate, registered, loaded, explained and reported on."""

__all__ = ["evaluation", "lineage", "loading", "promotion", "registry", "regressor", "report", "tracking"]
