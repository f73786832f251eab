"""Independent stages of `dvc.yaml` side by side: what `dvc repro` leaves, sooner."""

import importlib

_MODULES = {
    "lines": "display", "shown": "display", "ReproError": "errors", "StagesFailed": "errors", "State": "pipeline",
    "Progress": "reproduction", "reproduce": "reproduction",
}  # fmt: skip
__all__ = list(_MODULES)


def __getattr__(name: str):
    """Import what is asked for: DVC takes a second to import."""
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"dvc_parallel.{_MODULES[name]}"), name)
