"""The registry that the command line uses: `[tool.mlflow-gate]` in the next pyproject.toml upward."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from mlflow_gate.errors import ConfigError
from mlflow_gate.registry import Registry

EXAMPLE = '[tool.mlflow-gate]\nregistry = "judge:registry"'


def find_settings(folder: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Return the table `tool.mlflow-gate` and its folder; an empty table where there is none.

    >>> find_settings(Path("/"))
    ({}, PosixPath('/'))
    """
    start = (folder or Path()).resolve()
    for place in (start, *start.parents):
        file = place / "pyproject.toml"
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("mlflow-gate") if file.is_file() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read.", value=error) from None
        if isinstance(table, dict):
            return table, place
    return {}, start


def find_registry(name: str | None = None, *, module: str | None = None) -> Registry:
    """Return the registry of a registered model, or the one that the settings (or ``module:object``) name.

    >>> import contextlib
    >>> with contextlib.chdir("/"):  # where there are no settings
    ...     find_registry("doctest").name
    'doctest'
    """
    settings, folder = find_settings()
    named = module or settings.get("registry")
    if named is None:
        if name is None:
            what = "Which registered model is meant?"
            raise ConfigError(what, expected=f"its name; or in a pyproject.toml:\n{EXAMPLE}")
        return Registry(name)
    registry = _import(str(named), folder)
    return registry if name in (None, registry.name) else Registry(str(name))


def _import(named: str, folder: Path) -> Registry:
    sys.path.insert(0, str(folder))
    try:
        registry = EntryPoint("registry", named, "mlflow-gate").load()
    except (ImportError, AttributeError, ValueError) as error:
        expected = f"module:object, from {folder}, as in\n{EXAMPLE}"
        raise ConfigError("The registry cannot be imported.", value=f"{named}: {error}", expected=expected) from None
    finally:
        sys.path.remove(str(folder))
    made = registry() if callable(registry) and not isinstance(registry, Registry) else registry
    if not isinstance(made, Registry):
        expected = "a mlflow_gate.Registry, or a function that returns one"
        raise ConfigError(f"{named} is no registry.", value=repr(made)[:200], expected=expected)
    return made
