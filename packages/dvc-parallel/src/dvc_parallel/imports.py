"""Find what stages import: undeclared files, and installed modules. Parse the code without running it."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from dvc_parallel import compat
from dvc_parallel.pipeline import open_repository
from dvc_parallel.states import ReproError

PYTHON = re.compile(r"\bpython[\d.]* (?:-[WX] \S+ |-[^m ]\S* )*(?:-m (\S+)|([^ -]\S*))")
SCRIPT = re.compile(r"(?:^|\b(?:run|launch|torchrun) (?:.* )?)(?:\w+=\S* )*(\S+\.py)(?!\S)")
NOTEBOOKS = re.compile(r"--execute\b|\bjupyter[ -](execute|run)\b")
# IPython magics such as `%cd ..`, `files = !ls` and `name?`, but not `% x` and `!= x` in expressions.
MAGIC = re.compile(r"^([ \t]*(?:[\w, ]+=[ \t]*)?)(?:(?:%+\w|!(?!=))(?:.*\\\n)*.*|\??\w[\w.]*\?+$)", re.MULTILINE)
Code = tuple[Path, str]  # a file, and the package that its relative imports start from


def undeclared() -> list[str]:
    """Return a line for each file in this folder that a stage in this folder imports but does not declare."""
    with open_repository() as repo:
        stages = [stage for stage in repo.index.stages if stage.cmd and not stage.always_changed]
        lines = [line for stage in stages if _is_here(Path(stage.path)) for line in _undeclared(stage)]
    return list(dict.fromkeys(lines))


def shared_imports(lines: Iterable[tuple[str, str]]) -> list[str]:
    """Return the installed modules that at least two commands import; ``lines`` are commands and their folders."""
    counts = Counter[str]()
    for line, folder in lines:
        with contextlib.suppress(ReproError):  # the command itself will report the invalid code
            programs = list(_programs(line, Path(folder)))
            files = {(file, folders) for program, folders in programs for file in _imported(program, folders)}
            counts.update({module for file, folders in files for module in _installed(file, folders)})
    return [module for module, count in counts.items() if count > 1]


@functools.cache
def _installed(file: Path, folders: tuple[str, ...]) -> set[str]:
    """Return the installed modules, outside the standard library, that a file imports, or uses as `a.b`."""
    names, modules = {*_names(file, "")}, set()
    for node in (node for statement in _statements(file) for node in ast.walk(statement)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            names.add(f"{node.value.id}.{node.attr}")
    for name in (name for name in names if name.partition(".")[0] not in sys.stdlib_module_names):
        *_, (module, _, spec) = [("", "", None), *_specs(name, folders)]
        if spec and not _is_here(Path(spec.origin or Path.cwd())):
            modules.add(module)
    return modules


def _undeclared(stage: compat.Stage) -> Iterator[str]:
    declared = {Path(each.fs_path) for each in (*stage.deps, *stage.outs)}
    name = re.sub("@[^:]*$", "", stage.addressing)  # all stages of a `foreach` or `matrix` share one `deps` list
    for line in compat.split_commands(stage.cmd):
        for program, folders in _programs(line, Path(stage.wdir)):
            for file, importer in _imported(program, folders).items():
                if not {file, *file.parents} & declared:
                    why = f"{os.path.relpath(importer, stage.wdir)} imports it" if importer else "the command runs it"
                    yield f"{name}: add {os.path.relpath(file, stage.wdir)} to deps: {why}"


def _programs(line: str, folder: Path) -> Iterator[tuple[tuple[Code, ...], tuple[str, ...]]]:
    """Yield the code files and the module search path of each Python program in a shell command."""
    path: tuple[str, ...] = ()
    for command in re.split("[;&|()]+", line):
        words = [word.strip("'\"") for word in command.split()]
        text, notebooks = " ".join(words), [word for word in words if word.endswith(".ipynb")]
        if match := re.search(r"\bPYTHONPATH=(\S+)", text):
            path = tuple(str(_path(folder, each)) for each in match[1].split(":") if each)
        files: list[str] = []
        if words[:1] == ["cd"]:
            folder = _path(folder, words[-1])
        elif "papermill" in {Path(word).name for word in words}:
            files = notebooks[:1]
        elif NOTEBOOKS.search(text):
            files = notebooks
        elif (match := PYTHON.search(text)) and match[1]:
            yield _find(f"{match[1]}.__main__", (str(folder), *path)), (str(folder), *path)
        elif match := match or SCRIPT.search(text):
            files = [match[match.lastindex or 0]]
        for file in (_path(folder, name) for name in files):
            if file.is_file() and _is_here(file):
                folders = [file.parent, folder] if file.suffix == ".ipynb" else [file.parent]
                yield ((file, ""),), (*map(str, folders), *path)


@functools.cache
def _imported(program: tuple[Code, ...], folders: tuple[str, ...]) -> dict[Path, Path | None]:
    """Map each code file of a program to the file that imports it (None for the program itself)."""
    importers: dict[Path, Path | None] = {file: None for file, _ in program}
    codes = list(program)
    for file, package in codes:
        for code in (code for name in _names(file, package) for code in _find(name, folders)):
            if code[0] not in importers:
                importers[code[0]] = file
                codes.append(code)
    return {file: importer for file, importer in importers.items() if _statements(file)}


@functools.cache
def _find(name: str, folders: tuple[str, ...]) -> tuple[Code, ...]:
    """Return the files in this folder that Python runs to import ``name`` (a module, or an attribute of a module)."""
    codes = []
    for name_, parent, spec in _specs(name, folders):
        if spec.origin and spec.origin.endswith(".py") and _is_here(Path(spec.origin)):
            codes.append((Path(spec.origin), name_ if spec.submodule_search_locations else parent))
    return tuple(codes)


def _specs(name: str, folders: tuple[str, ...]) -> Iterator[tuple[str, str, ModuleSpec]]:
    """Yield each module on the way to ``name`` (a module, or an attribute of one): its name, package and spec."""
    package, path = "", [*folders, *sys.path]
    for part in name.split("."):
        spec = PathFinder.find_spec(part, path)
        if not spec and not package:
            with contextlib.suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(part)  # an editable package
        if not spec:
            return
        parent, package = package, f"{package}.{part}".lstrip(".")
        path = list(spec.submodule_search_locations or [])
        yield package, parent, spec


@functools.cache
def _names(file: Path, package: str) -> list[str]:
    """Return the names that a file imports, including imports inside functions."""
    names = []
    for node in (node for statement in _statements(file) for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the top-level package: Python itself would fail
                module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names += [f"{module}.{alias.name}" for alias in node.names]
    return names


@functools.cache
def _statements(file: Path) -> list[ast.stmt]:
    """Return the statements of a file or notebook, without docstrings and TYPE_CHECKING blocks."""
    try:
        code: bytes | str = file.read_bytes()
        if file.suffix == ".ipynb":
            notebook = json.loads(code)
            if notebook["metadata"].get("kernelspec", {}).get("language", "python") != "python":
                return []
            cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
            code = "\n".join(MAGIC.sub(r"\g<1>0", cell) for cell in cells if not re.match("%%(?!time|capture)", cell))
        tree = ast.parse(code)
    except (KeyError, SyntaxError, TypeError, ValueError) as error:
        text = f"{os.path.relpath(file)} cannot be parsed as Python."
        raise ReproError(text, found=error, next="correct the file, then run the check again") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and re.fullmatch(r"(\w+\.)?TYPE_CHECKING", ast.unparse(node.test)):
            node.body = []
    return [each for each in tree.body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]


def _path(folder: Path | str, name: str) -> Path:
    return Path(os.path.normpath(Path(folder, name)))


def _is_here(file: Path) -> bool:
    return file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts
