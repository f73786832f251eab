"""The combinations of a notebook's parameters: read from the command line, checked, each with a file's name."""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workshop.errors import EngineError

MOST_COMBINATIONS = 10_000
LONGEST_NAME = 180  # bytes of a file's name: file systems take 255, and saving beside it needs a few
UNSAFE = re.compile(r"[^\w.+=-]")


def read_value(text: str) -> bool | int | float | str | None:
    """Return the value that papermill's option ``-p`` reads from a text."""
    from papermill.cli import _resolve_type

    return _resolve_type(text)


def combinations(sweeps: Iterable[str]) -> list[dict[str, Any]]:
    """Return all combinations of ``NAME=VALUE,VALUE,...``, the last name varying fastest; `[{}]` for no sweep.

    Values are read as papermill's ``-p`` does; one that holds a comma stands in double quotes. Raises EngineError for
    a sweep without values, with the same value or name twice, and for too many combinations.
    """
    values: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, _, text = sweep.partition("=")
        texts = [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]
        if not name or not texts or not all(texts):
            raise misuse("A sweep has no values, or an empty one.", sweep)
        if name in values:
            raise misuse(f"The parameter `{name}` is swept twice.", sweep)
        values[name] = [read_value(part) for part in texts]
        if len(set(map(repr, values[name]))) < len(texts):
            raise misuse("A sweep has the same value twice.", sweep)
    count = math.prod(map(len, values.values()))
    if count > MOST_COMBINATIONS:
        raise misuse("There are too many combinations.", f"{count:,}", expected=f"at most {MOST_COMBINATIONS:,}")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def file_names(stem: str, every: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a notebook's file name for each set of parameters: safe, and different also where case is ignored."""
    names: dict[str, str] = {}
    for parameters in every:
        wanted = "".join(f"__{name}={value}" for name, value in parameters.items())
        name = stem + UNSAFE.sub("_", wanted)
        short = name.encode()[:LONGEST_NAME].decode(errors="ignore")
        if short != stem + wanted or short.casefold() in names:
            short += "__" + hashlib.sha256(repr(parameters).encode()).hexdigest()[:8]
        names[short.casefold()] = f"{short}.ipynb"
    return list(names.values())


def check_parameters(notebook: Path, fixed: Mapping[str, Any], swept: Mapping[str, Any]) -> None:
    """Raise EngineError when the notebook does not have a parameter, or one is both fixed and swept."""
    known = known_parameters(notebook)
    if twice := fixed.keys() & swept.keys():
        raise misuse("A parameter is both fixed and swept.", ", ".join(sorted(twice)))
    unknown = [name for name in (*fixed, *swept) if known is not None and name not in known]
    if unknown:
        listed = f"one of {', '.join(known)}" if known else "a notebook with a cell tagged `parameters` that sets some"
        raise misuse(f"{notebook} has no such parameter.", ", ".join(unknown), expected=listed)


def known_parameters(notebook: Path) -> list[str] | None:
    """Return the parameters that a notebook's cell tagged ``parameters`` sets; None when its language hides them."""
    from papermill.exceptions import PapermillException
    from papermill.iorw import load_notebook_node
    from papermill.translators import papermill_translators
    from papermill.utils import find_first_tagged_cell_index, nb_kernel_name, nb_language

    if not notebook.is_file():
        raise misuse("There is no such notebook.", notebook, expected="the path of an .ipynb file")
    try:
        document = load_notebook_node(str(notebook))
        index = find_first_tagged_cell_index(document, "parameters")
        if index < 0:
            return []
        translator = papermill_translators.find_translator(nb_kernel_name(document), nb_language(document))
        return [parameter.name for parameter in translator.inspect(document.cells[index])]
    except NotImplementedError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, PapermillException) as error:
        raise misuse("The notebook cannot be read.", f"{notebook}: {error}", expected="a Jupyter notebook") from None


def misuse(what: str, value: object, expected: str = "NAME=VALUE,VALUE,... with each name and value once"):
    """Return the error for what a user typed; nothing has run yet."""
    return EngineError(what, value=str(value), expected=expected, next_step="nothing has run; mend it, then try again")
