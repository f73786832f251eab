"""Options of a notebook, from papermill's keywords, Dask's configuration and the notebook's metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import dask.config
import yaml

from papermill_dask.failures import EngineError

SECTION = "papermill-dask"  # of Dask's configuration
METADATA = "papermill_dask"  # of a notebook's metadata
NOTEBOOK = "notebook"  # the Dask resource that is a worker's number of notebooks in parallel
RESULTS = ("lost", "runs")  # the entries that an execution writes there
PARAMETER_TAGS = {"parameters", "injected-parameters"}

dask.config.update_defaults(yaml.safe_load(Path(__file__).with_name("papermill_dask.yaml").read_text()))


def _words(value: str | Iterable[str]) -> list[str]:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else list(value)


def _tags(value: str | Iterable[str]) -> list[str]:
    if is_needed := PARAMETER_TAGS.intersection(tags := _words(value)):
        raise ValueError(f"the cells tagged `{is_needed.pop()}` set the parameters")
    return tags


def _amounts(value: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(amount) for name, amount in value.items()}


def _count(value: str | float) -> int:
    if (count := int(value)) < 0:
        raise ValueError("it is negative")
    return count


@dataclass(frozen=True)
class NotebookOptions:
    """The options of one notebook; `papermill_dask.yaml` explains each."""

    deps: list[str] | None = field(default=None, metadata={"read": _words})
    outs: list[str] | None = field(default=None, metadata={"read": _words})
    resources: dict[str, float] = field(default_factory=dict, metadata={"read": _amounts})
    retries: int = field(default=0, metadata={"read": _count})
    environment: list[str] = field(default_factory=list, metadata={"read": _words})
    skip_tags: list[str] = field(default_factory=list, metadata={"read": _tags})

    @classmethod
    def of(cls, metadata: Mapping[str, Any], keywords: Mapping[str, Any]) -> NotebookOptions:
        """Return the options of the keywords, of Dask's configuration, and of a notebook's metadata; the first wins.

        Raises EngineError, naming the option, for one that is unknown or cannot be used.
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
                    f"The notebook's option `{name}` cannot be used.",
                    value=f"{value!r} ({error})" if is_option else repr(value),
                    expected="see papermill-dask's README, `Options`" if is_option else f"one of {', '.join(readers)}",
                ) from None
        return cls(**options)


OPTIONS = tuple(option.name for option in fields(NotebookOptions))


def tags_of(cells: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the tags of a notebook's code cells.

    >>> tags_of([{"cell_type": "code", "metadata": {"tags": ["slow"]}}, {"cell_type": "markdown", "metadata": {}}])
    {'slow'}
    """
    return {tag for cell in cells if cell.get("cell_type") == "code" for tag in cell["metadata"].get("tags", [])}
