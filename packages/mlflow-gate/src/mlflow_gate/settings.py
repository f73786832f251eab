"""The registry that the command line uses: `[tool.mlflow-gate]` in the next pyproject.toml upward."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from mlflow_gate.errors import ConfigError
from mlflow_gate.registry import Registry

EXAMPLE = '[tool.mlflow-gate]\nregistry = "judge:registry"'


def find_registry(name: str | None = None, module: str | None = None) -> Registry:
    """Return the registry of a registered model, or the one that the settings (or ``module:object``) name."""
    folder, named = Path.cwd(), module
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("mlflow-gate") if file.is_file() else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read.", value=error) from None
        if isinstance(table, dict):
            folder, named = place, module or table.get("registry")
            break
    if named is None and name is None:
        raise ConfigError("Which registered model is meant?", expected=f"its name; or in a pyproject.toml:\n{EXAMPLE}")
    if named is None:
        return Registry(str(name))
    sys.path.insert(0, str(folder))
    try:
        loaded = EntryPoint("registry", named, "mlflow-gate").load()
    except (ImportError, AttributeError, ValueError) as error:
        expected = f"module:object, from {folder}, as in\n{EXAMPLE}"
        raise ConfigError("The registry cannot be imported.", value=f"{named}: {error}", expected=expected) from None
    finally:
        sys.path.remove(str(folder))
    registry = loaded() if callable(loaded) and not isinstance(loaded, Registry) else loaded
    if not isinstance(registry, Registry):
        expected = "a mlflow_gate.Registry, or a function that returns one"
        raise ConfigError(f"{named} is no registry.", value=repr(registry)[:200], expected=expected)
    return registry if name in (None, registry.name) else Registry(str(name))
