"""`dvc-parallel check` reports imported code that is not a dependency of the stage."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from repositories import PACKAGE, new_repository, program, read


def notebook(*cells: str, language: str = "python") -> str:
    """Return a notebook with code cells and a text cell."""
    entries = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    entries.append({"cell_type": "markdown", "source": ["import nothing"]})
    return json.dumps({"cells": entries, "metadata": {"kernelspec": {"language": language}}})


MAGIC = "files = !ls\nif files:\n    %cd ..\nhelper?\nawait x\nx = ('a=%s'\n     % 1\n     != 2)\nimport __main__, sys"
FILES = {
    "plain.py": "import helper, numpy, json",
    "helper.py": "x = 1",
    "deep.py": "def main():\n    from pkg.inner import a\n",
    "typed.py": "import typing\nif typing.TYPE_CHECKING:\n    import helper\nelse:\n    import spaced.one",
    "alone.py": "print('no imports')",
    "pkg/__init__.py": '"""Nothing but text."""',
    "pkg/__main__.py": "from . import inner",
    "pkg/inner/__init__.py": "from .a import x",
    "pkg/inner/a.py": "from ..b import x",
    "pkg/b.py": "x = 1",
    "spaced/one.py": "x = 1",
    "scripts/train.py": "import near",
    "scripts/near.py": "x = 1",
    "json2/tool.py": "import spaced.one",
    "book.ipynb": notebook("%matplotlib inline\n!pip install \\\n  it\nimport helper", MAGIC, "%%sh\nls -l"),
    "nb/near_it.ipynb": notebook("%%time\nfrom pkg import b"),
    "nb/r.ipynb": notebook("library(helper)", language="R"),
    "out.ipynb": notebook("import spaced.one"),
}  # fmt: skip
PKG = ["pkg/inner/__init__.py", "pkg/inner/a.py", "pkg/b.py"]
# For each command the dependencies of the stage, and the missing ones.
CASES = {
    "python plain.py": (["plain.py"], ["helper.py"]),
    "python plain.py ": ([], ["plain.py", "helper.py"]),
    "FOO=1 python3 -u -W error plain.py --x=1 && echo done": (["plain.py"], ["helper.py"]),
    "./plain.py; uv run plain.py": (["plain.py"], ["helper.py"]),
    "torchrun --nproc 2 plain.py": (["plain.py"], ["helper.py"]),
    "python deep.py": (["deep.py"], PKG),
    "python 'deep.py'": (["deep.py", "pkg"], []),
    "python typed.py": (["typed.py"], ["spaced/one.py"]),
    "python -m pkg": (["pkg/inner"], ["pkg/__main__.py", "pkg/b.py"]),
    "python -m pkg.inner.a": ([], PKG),
    "python -m json.tool alone.py": ([], []),
    "echo start\npython scripts/train.py": (["scripts/train.py"], ["scripts/near.py"]),
    "cd scripts && python train.py": (["scripts/train.py"], ["scripts/near.py"]),
    "PYTHONPATH=scripts:x python -m near": ([], ["scripts/near.py"]),
    "papermill book.ipynb out.ipynb -p a 1": (["book.ipynb"], ["helper.py"]),
    "python -m papermill book.ipynb out.ipynb": ([], ["book.ipynb", "helper.py"]),
    "jupyter nbconvert --to html --execute nb/near_it.ipynb": (["nb/near_it.ipynb"], ["pkg/b.py"]),
    "jupyter-nbconvert book.ipynb --to html": ([], []),
    "jupyter execute book.ipynb nb/near_it.ipynb": (["book.ipynb", "nb"], ["helper.py", "pkg/b.py"]),
    "papermill nb/r.ipynb out.ipynb": (["nb/r.ipynb"], []),
    "python alone.py": (["alone.py"], []),
    "cat plain.py; python none.py": ([], []),
}
MORE = {
    "in_folder": {"wdir": "scripts", "cmd": "python train.py", "deps": ["train.py"]},
    "each": {"foreach": ["plain", "deep"], "do": {"cmd": "python ${item}.py", "deps": ["${item}.py", "pkg"]}},
    "grid": {"matrix": {"n": [1, 2]}, "cmd": "python plain.py ${item.n}", "deps": ["plain.py"]},
    "several": {"cmd": ["echo", "python plain.py"], "deps": ["plain.py"]},
    "always": {"cmd": "python plain.py", "always_changed": True},
    "made": {"cmd": "python plain.py", "deps": ["plain.py"], "outs": ["helper.py"], "frozen": True},
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[str]:
    """Return the output lines of the command in a repository with all stages."""
    stages = {f"case{i}": {"cmd": cmd, "deps": deps} for i, (cmd, (deps, _)) in enumerate(CASES.items())}
    repo = new_repository(tmp_path_factory.mktemp("check") / "place", stages | MORE)
    for name, text in FILES.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(text)
    done = program(repo, "dvc-parallel", "check")
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("command", CASES)
def test_missing_dependencies_of_a_command_are_reported(lines, command):
    """For scripts, modules and notebooks, in each form of a command, exactly the missing dependencies are reported."""
    stage = f"case{[*CASES].index(command)}"
    added = [line.split()[2] for line in lines if line.startswith(f"{stage}: ")]
    assert sorted(added) == sorted(CASES[command][1])


def test_lines_say_what_to_add_and_why(lines):
    """Paths are relative as in the stage; all stages of a `foreach` or `matrix` share a line."""
    assert sorted(line for line in lines if not line.startswith("case")) == [
        "each: add helper.py to deps: plain.py imports it",
        "grid: add helper.py to deps: plain.py imports it",
        "in_folder: add near.py to deps: train.py imports it",
        "several: add helper.py to deps: plain.py imports it",
    ]


def test_check_is_limited_to_this_folder(tmp_path):
    """Stages and code of other folders are not checked, nor is code that is installed below this folder."""
    stages = {"a": {"cmd": "python ../lib.py; python a.py; python -m six", "deps": ["a.py"]}}
    repo = new_repository(tmp_path / "place", {"other": {"cmd": "python lib.py"}})
    (repo / "sub/lib/site-packages").mkdir(parents=True)
    for name in ("lib.py", "sub/a.py", "sub/lib/site-packages/b.py"):
        (repo / name).write_text("import lib\nx = 1")
    (repo / "sub/dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    done = program(repo / "sub", "dvc-parallel", "check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert program(repo, "dvc-parallel", "check").stdout.startswith("other: add lib.py to deps: the command runs it\n")


@pytest.mark.parametrize(
    ("name", "text"), [("a.py", "import x\ndef"), ("a.py", "\0"), ("a.ipynb", "{}"), ("a.ipynb", notebook("def"))]
)
def test_code_that_cannot_be_read_is_named(tmp_path, name, text):
    """A file with a syntax error is an error, not a stage that passes."""
    repo = new_repository(tmp_path / "place", {"a": {"cmd": f"{'papermill' if 'nb' in name else 'python'} {name}"}})
    (repo / name).write_text(text)
    done = program(repo, "dvc-parallel", "check")
    assert done.returncode == 1
    assert f"{name} cannot be parsed as Python" in done.stderr


def test_check_prints_what_the_readme_shows(tmp_path):
    """The README's stage and script give its line; the pre-commit hook calls the command."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", read(PACKAGE / "README.md"), re.MULTILINE | re.DOTALL)
    (stages,) = [text for text in blocks if "python train.py" in text]
    (shell,) = [text for text in blocks if text.startswith("$ dvc-parallel check")]
    repo = new_repository(tmp_path / "place", stages)
    (repo / "train.py").write_text("import features\n")
    (repo / "features.py").write_text("x = 1\n")
    assert program(repo, "dvc-parallel", "check").stdout == shell.partition("\n")[2]
    (repo / "dvc.yaml").write_text(stages.replace("- train.py", "- train.py\n      - features.py"))
    assert program(repo, "dvc-parallel", "check").returncode == 0
    (hook,) = [hook for text in blocks if "repos:" in text for hook in yaml.safe_load(text)["repos"][0]["hooks"]]
    assert hook["entry"] == "dvc-parallel check"
