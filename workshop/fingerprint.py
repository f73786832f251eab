"""The code of a stage: what it imports of this package, each module with a digest, and a fingerprint of them all.

A stage with `own_file` in its ``meta`` depends on the file that the section `fetch` of params.yaml names, too.

A digest is that of the syntax tree without docstrings, so comments, layout and better words change nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from workshop.errors import EngineError
from workshop.files import write_atomically

FILE = "{}.txt"  # among the dependencies of a stage: its code
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = __name__.partition(".")[0]
DIGITS = 16
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where PyYAML has the C library: ten times as fast
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def stages(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of the dvc.yaml in a folder; raise EngineError when it declares none."""
    file = folder / "dvc.yaml"
    try:
        return dict(yaml.load(file.read_text(), LOADER)["stages"])  # noqa: S506 - a safe one
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise EngineError(f"{file} declares no stages.", value=repr(error)) from None


def write_code(pipeline: Path, folder: Path, root: Path = ROOT) -> None:
    """Write the code of each stage of a pipeline to ``folder``, a file for each stage that depends on one."""
    contents = {}
    for name, stage in stages(pipeline).items():
        if any(Path(str(path)).name == FILE.format(name) for path in stage.get("deps", [])):
            own = _own_file(pipeline) if stage.get("meta", {}).get("own_file") else ""
            contents[FILE.format(name)] = (code_of(stage, pipeline, root) + own).encode()
    for old in folder.glob("*"):
        if old.name not in contents:
            old.unlink()
    for name, content in contents.items():
        write_atomically(folder / name, content)


def _own_file(pipeline: Path) -> str:
    """Return digest and path of the file that the source `csv` reads; nothing for another source, or without a file."""
    section = yaml.load((pipeline / "params.yaml").read_text(), LOADER)["fetch"]  # noqa: S506 - a safe one
    file = pipeline / section["csv"]["file"] if section["source"] == "csv" else pipeline
    if not file.is_file():  # the stage reports it
        return ""
    with file.open("rb") as content:
        return f"{hashlib.file_digest(content, 'sha256').hexdigest()[:DIGITS]}  {section['csv']['file']}\n"


def code_of(stage: Mapping[str, Any], folder: Path, root: Path = ROOT) -> str:
    """Return what a stage of the dvc.yaml in ``folder`` imports of the package in ``root``: lines of digest and module.

    It begins with the notebooks among the stage's dependencies and the modules of ``meta: code``, and follows the
    imports through the package, those inside functions too.
    """
    names = set(stage.get("meta", {}).get("code", []))
    for dependency in filter(lambda path: path.endswith(".ipynb"), map(str, stage.get("deps", []))):
        names |= _imports(ast.walk(_tree(_source(folder / dependency))))
    digests: dict[str, str] = {}
    while names:
        name = names.pop()
        if name not in digests and (file := _file(name, root)):
            latest = max(beside.stat().st_mtime_ns for beside in file.parent.iterdir())
            digests[name], imports = _module(file, latest)
            names |= {name.rpartition(".")[0]} | imports
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def fingerprint(code: str) -> str:
    """Return the fingerprint of what `code_of` returned."""
    return hashlib.sha256(code.encode()).hexdigest()[:DIGITS]


def _file(name: str, root: Path) -> Path | None:
    """Return the file of a module of the package; None for any other name."""
    if name.partition(".")[0] != PACKAGE:
        return None
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _source(notebook: Path) -> str:
    """Return the code of a notebook without IPython's own lines; nothing for one that cannot be read."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return ""  # papermill reports the error
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def _tree(source: str) -> ast.Module:
    """Return the syntax tree of a source without what is there for type checkers alone."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # no imports to follow; Python reports the error at the import
        return ast.Module([ast.Expr(ast.Constant(source)), ast.Expr(ast.Constant(0))], [])
    tree.body = [node for node in tree.body if getattr(getattr(node, "test", None), "id", None) != "TYPE_CHECKING"]
    return tree


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the modules that may be meant: in `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@functools.cache
def _module(file: Path, _latest: int) -> tuple[str, set[str]]:
    """Return the digest of a module, with the files beside it that it names, and its imports."""
    tree = _tree(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    imports = _imports(nodes)
    for node in nodes:
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        elif isinstance(node, ast.JoinedStr):  # 3.12 puts an empty text behind `{x:{y}}`
            node.values = [value for value in node.values if getattr(value, "value", None) != ""]
    # As Python 3.11 writes it: 3.13 leaves empty lists out, and 3.12 knows one more of them.
    complete = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    content = hashlib.sha256(ast.dump(tree, **complete).replace(", type_params=[]", "").encode())
    for beside in _neighbours(nodes, file):
        content.update(beside.read_bytes())
    return content.hexdigest()[:DIGITS], imports


def _neighbours(nodes: Iterable[ast.AST], file: Path) -> Iterable[Path]:
    """Return the templates and tables beside a module whose names it holds."""
    names = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    paths = (file.parent / name for name in sorted(names) if "." in name and name.replace(".", "_").isidentifier())
    return (path for path in paths if path.is_file())
