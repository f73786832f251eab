"""Plain English: phrases at which a native reader stumbles, and names of variables that are participles."""

from __future__ import annotations

import ast
import json
import re

import pytest
from workplace import ROOT, files_of_tree

# What not to write, each with what to write in its place.
PHRASES = {
    r"\banew\b": "again",
    r"\bspeaks\b": "is in production, predicts",
    r"\bgoes on\b": "continues",
    r"\bfor ever\b": "forever, always, again and again",
    r"\bheld against\b": "compared with",
    r"\bhas only the rules\b": "must pass only the rules",
    r"\bstands? twice\b": "duplicate",
    r"\bthat never (was|were)\b": "skipped by the clock change; that never occur",
    r"\bwhere there is a doubt\b": "if it is ambiguous",
    r"\b(is|in) written nowhere\b": "not recorded",
    r"\bless than nothing\b": "negative",
    r"\bpassword is in no\b": "contain no password",
    r"\bhangs on\b": "depends on",
    r"\bthat flatters\b": "that overestimates",
    r"\bstays too low\b": "underestimates",
    r"\blet happen\b": "approved",
    r"\bwhat is none\b": "name the thing",
    r"\bthe share of hours that it promises\b": "the promised coverage",
    r"\bof a wish for\b": "the requested",
    r"\bmost_size|least_gain\b": "max_size, min_gain",
}
PARTICIPLES = {"found", "given", "lacking", "mine", "shown", "told", "wanted"}
# Chapter 1 is messy on purpose, and a changelog of the past stays as it is.
TEXTS = [
    name for name in files_of_tree("*.md", "*.py", "*.ipynb", "*.jinja", "*.yaml", "*.toml", "*.sh", "*.js")
    if name != "tests/test_words.py" and not name.startswith("1_starting_point/")
]  # fmt: skip


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases_are_plain(phrase):
    """No text, docstring or comment has a phrase for which there is a plainer one."""
    pattern = re.compile(phrase.replace(" ", r"\s+(?:#\s*)?"))
    places = [
        f"{name}: {' '.join(match[0].split())}"
        for name in TEXTS
        for match in pattern.finditer((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert places == [], f"write: {PHRASES[phrase]}"


def code_of(name: str) -> ast.Module:
    """Return the syntax tree of a module, or of a notebook's code without IPython's own lines."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join(line for line in "\n".join(cells).splitlines() if not re.match(r"\s*(\w+ = )?[%!]", line))
    return ast.parse(text)


def test_variables_are_nouns():
    """A variable or parameter names a thing, not what was done with it."""
    places = {}
    for name in (name for name in TEXTS if name.endswith((".py", ".ipynb"))):
        nodes = list(ast.walk(code_of(name)))
        fields = {id(field.target) for node in nodes if isinstance(node, ast.ClassDef) for field in node.body
                  if isinstance(field, ast.AnnAssign)}  # fmt: skip
        names = {
            node.id
            for node in nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields
        }
        names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        if participles := names & PARTICIPLES:
            places[name] = participles
    assert places == {}
