"""Built-in data: docstrings of installed libraries, written as posts in the format of Stack Exchange's dumps."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from xml.sax.saxutils import quoteattr

LIBRARIES = ("pandas", "numpy", "sklearn", "matplotlib", "dask", "distributed", "pyarrow")
MIN_CHARACTERS = 200
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that XML does not allow
DATE = "2020-01-01T00:00:00.000"


def write_xml(file: Path) -> None:
    """Write a Posts.xml; the same versions of the libraries always give the same bytes."""
    with file.open("w", encoding="utf-8", newline="\n") as output:
        output.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        number = 0
        for library in LIBRARIES:
            for name, text in _docstrings(library):
                number += 1
                title, _, rest = text.partition("\n")
                row = {"Id": str(number), "PostTypeId": "1", "CreationDate": DATE, "Title": f"{name}: {title}"}
                row |= {"Body": _html(rest), "Tags": f"<{library}>"}
                output.write(f"  <row {' '.join(f'{key}={_quoted(value)}' for key, value in row.items())} />\n")
        output.write("</posts>\n")


def _docstrings(library: str) -> Iterator[tuple[str, str]]:
    """Yield names and docstrings of classes and functions; parse the files only; skip short docstrings and tests."""
    folder = Path(importlib.util.find_spec(library).submodule_search_locations[0])
    for file in sorted(folder.rglob("*.py")):
        if "tests" in file.relative_to(folder).parts:
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= MIN_CHARACTERS:
                    yield node.name, text


def _html(text: str) -> str:
    """Return ``text`` as HTML: a paragraph that starts with `>>>` becomes code."""
    tags = {True: ("<pre><code>", "</code></pre>"), False: ("<p>", "</p>")}
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    return "\n".join(escape(each).join(tags[each.startswith(">>>")]) for each in paragraphs if each)


def _quoted(value: str) -> str:
    return quoteattr(CONTROL.sub("", value), {"\n": "&#xA;", "\t": "&#x9;", "\r": "&#xD;"})
