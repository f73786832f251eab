"""Notebook options, merged from papermill's keywords, Dask's configuration and the notebook's metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import dask.config
import yaml

from papermill_dask.errors import EngineError

SECTION = "papermill-dask"  # section of Dask's configuration
METADATA = "papermill_dask"  # key in a notebook's metadata
NOTEBOOK = "notebook"  # Dask resource: how many notebooks a worker runs in parallel
RESULT_KEYS = ("lost", "runs")  # metadata keys that a run writes
PARAMETER_TAGS = {"parameters", "injected-parameters"}

dask.config.update_defaults(yaml.safe_load(Path(__file__).with_name("papermill_dask.yaml").read_text()))


def _to_list(value: str | Iterable[str]) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else list(value)


def _to_tags(value: str | Iterable[str]) -> list[str]:
    if reserved := PARAMETER_TAGS.intersection(tags := _to_list(value)):
        raise ValueError(f"cells tagged `{reserved.pop()}` set the parameters and cannot be skipped")
    return tags


def _to_amounts(value: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(amount) for name, amount in value.items()}


def _to_count(value: str | float) -> int:
    if (count := int(value)) < 0:
        raise ValueError("must not be negative")
    return count


@dataclass(frozen=True)
class NotebookOptions:
    """Options of one notebook, documented in `papermill_dask.yaml`."""

    deps: list[str] | None = field(default=None, metadata={"read": _to_list})
    outs: list[str] | None = field(default=None, metadata={"read": _to_list})
    resources: dict[str, float] = field(default_factory=dict, metadata={"read": _to_amounts})
    retries: int = field(default=0, metadata={"read": _to_count})
    environment: list[str] = field(default_factory=list, metadata={"read": _to_list})
    skip_tags: list[str] = field(default_factory=list, metadata={"read": _to_tags})

    @classmethod
    def resolve(cls, metadata: Mapping[str, Any], keywords: Mapping[str, Any]) -> NotebookOptions:
        """Merge the keywords, Dask's configuration and the notebook's metadata, in this order of precedence.

        Raises EngineError, naming the option, if one is unknown or its value is invalid.
        """
        readers: dict[str, Callable[[Any], Any]] = {option.name: option.metadata["read"] for option in fields(cls)}
        settings = {name: dask.config.get(f"{SECTION}.{name.replace('_', '-')}", None) for name in readers}
        values = {**metadata, **{name: value for name, value in settings.items() if value is not None}, **keywords}
        options = {}
        for name, value in values.items():
            try:
                if value is not None:
                    options[name] = readers[name](value)
            except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
                is_option = name in readers
                raise EngineError(
                    f"Invalid notebook option `{name}`.",
                    value=f"{value!r} ({error})" if is_option else repr(value),
                    expected="see papermill-dask's README, `Options`" if is_option else f"one of {', '.join(readers)}",
                ) from None
        return cls(**options)


OPTIONS = tuple(option.name for option in fields(NotebookOptions))


def cell_tags(cells: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the tags of a notebook's code cells.

    >>> cell_tags([{"cell_type": "code", "metadata": {"tags": ["slow"]}}, {"cell_type": "markdown", "metadata": {}}])
    {'slow'}
    """
    return {tag for cell in cells if cell.get("cell_type") == "code" for tag in cell["metadata"].get("tags", [])}
