"""The documentation: links resolve, commands exist and parse, chapters share their headings."""

from __future__ import annotations

import itertools
import json
import os.path
import re
import shlex
import subprocess

import click
import pytest
from dashboard.app import main as dashboard
from dvc_parallel.cli import main as dvc_parallel
from forecast.__main__ import main as forecast
from mlflow_ftp.server import main as mlflow_ftp_server
from mlflow_gate.cli import main as mlflow_gate
from papermill_dask.client.sweep import main as papermill_sweep
from test_another_problem import LOAD, PRICE, VISITORS
from workplace import ROOT, files_of_tree, is_near_wanted

from benchmarks.run import BENCHMARKS, RESULTS
from benchmarks.table import BEGIN, END, table
from workshop.cli import main

PAGES = [ROOT / name for name in files_of_tree("*.md")]
CHAPTERS = ["1_starting_point", "2_tracking", "3_projects", "4_pipeline"]
HEADINGS = ["What you will learn", "Before you start", "Time", "Steps", "Take-away"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("example", [PRICE, LOAD, VISITORS], ids=lambda example: example.name)
def test_diffs_of_another_problem_fit_the_files(example):
    """Each removed or unchanged part of a diff is in its file once; the page is followed at night."""
    assert example.edited(ROOT / "4_pipeline")


def name(path):
    """Return a page's name for test ids."""
    return str(path.relative_to(ROOT))


MADE = {".ipynb_checkpoints", "executed", ".environment", "a_year"}
NOTEBOOKS = [path for path in sorted(ROOT.glob("[1-4]_*/**/*.ipynb")) if not MADE & set(path.parts)]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name)
def test_relative_links_resolve(page):
    """Every link to a file of the repository resolves, in pages and in text cells of notebooks."""
    for target in re.findall(r"\]\(([^)#\s\"]+)[^)\"]*\)", page.read_text()):
        if not re.match(r"[a-z]+:|attachment", target) and "\\" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


TREE = {each for file in files_of_tree() for each in (file, *map(str, (ROOT / file).relative_to(ROOT).parents))}
PATH = re.compile(r"(?<![\w/.:~$*{}<>@+%-])(?:\.\./)*(\w[\w.-]*(?:/[\w-][\w.-]*)+)")


def named_paths(path):
    """Yield the paths in backticks and code blocks of a page or a notebook that start with an existing name.

    Each is yielded relative to the top and to the file's folder.
    """
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    created = re.findall(r"^```python (\S+)", text, flags=re.MULTILINE)  # files that the reader writes
    for code in re.findall(r"^ *```.*?^ *```|`[^`\n]+`", text, flags=re.DOTALL | re.MULTILINE):
        for words in set(PATH.findall(code)).difference(created):
            meant = [words, os.path.normpath(path.parent.relative_to(ROOT) / words)]
            if any(each.removesuffix(words) + words.split("/")[0] in TREE for each in meant):
                yield meant


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in files_of_tree("*.ipynb"))], ids=name)
def test_paths_that_texts_name_exist(page):
    """Each path is in the repository, or is ignored by git because a command creates it."""
    for meant in named_paths(page):
        ignored = subprocess.run(
            ["git", "check-ignore", *meant, *(f"{each}/" for each in meant)], cwd=ROOT, capture_output=True, check=False
        )
        assert TREE & set(meant) or ignored.returncode == 0, meant[0]


PROGRAMS = {
    "workshop": main, "mlflow-gate": mlflow_gate, "dvc-parallel": dvc_parallel, "papermill-sweep": papermill_sweep,
    "mlflow-ftp-server": mlflow_ftp_server, "python -m forecast": forecast, "python -m dashboard": dashboard,
}  # fmt: skip


def commands(page):
    """Return the lines of shell blocks and inline code that call one of this repository's programs."""
    text = page.read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fences if language in ("bash", "sh", "console")]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *re.findall(rf"`((?:make|{'|'.join(PROGRAMS)}) [^`]+)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_and_their_options_parse(page):
    """Each command line has an existing command with valid options, or a target of make."""
    for line in commands(page):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)  # `;` and `|` are tokens
        lexer.whitespace_split = True
        for _, part in itertools.groupby(lexer, lambda word: word[:1] in "();<>|&"):
            words = list(part)
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= TARGETS, line
            for program, command in PROGRAMS.items():
                if words[: len(program.split())] == program.split() and "..." not in words:
                    check_parses(words[len(program.split()) :], line, command)


def typed(path):
    """Return the text of a program, or of a page or notebook without output blocks: what a reader types or opens."""
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    return re.sub(r"^ *```text\n.*?```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, ROOT / "1_starting_point" / "dashboard" / "app.py"], ids=name)
def test_texts_use_no_port_that_servers_may_take(path):
    """Commands and links use exported addresses, or ports that `up` never takes: defaults may be another clone's."""
    if path == ROOT / "examples" / "posts_over_ssh" / "README.md":  # names the ports that SSH forwards to the laptop
        return
    ports = re.findall(r"(?:127\.0\.0\.1|localhost|--port|PORT=)[ :=]?(\d{4,5})", typed(path))
    assert [port for port in ports if is_near_wanted(int(port))] == []


def check_parses(words, line, command):
    """Parse the arguments with click without running anything."""
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(context, words.pop(0))
        assert command, line
    if isinstance(command, click.Group):
        return
    try:
        command.make_context(line, list(words), parent=context)
    except (click.exceptions.MissingParameter, click.exceptions.BadOptionUsage, click.exceptions.Exit):
        pass  # mentioned without arguments, or --help
    except click.exceptions.BadParameter as error:  # a placeholder for a number, or a file of the reader
        is_file = error.param and isinstance(error.param.type, click.Path | click.File)
        assert is_file or any(re.search(r"[A-Z]{2,}", word) for word in words), line


def test_make_help_names_each_target():
    """Each target for users is listed, with a description."""
    makefile = (ROOT / "Makefile").read_text()
    [targets] = re.findall(r"^\.PHONY: (.*)", makefile, flags=re.MULTILINE)
    assert set(re.findall(r'@echo "make ([\w-]+) ', makefile)) | {"help"} == set(targets.split())


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapters_share_their_headings(chapter):
    """Each chapter has the same headings and a link to the next one."""
    text = (ROOT / chapter / "README.md").read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS
    assert dict(zip(CHAPTERS, [*CHAPTERS[1:], "README"], strict=True))[chapter] in text.rstrip().splitlines()[-1]


def test_table_of_benchmarks_has_the_recorded_results():
    """The page shows the recorded results, and each package's page links to it."""
    page = ROOT / "benchmarks" / "README.md"
    assert page.read_text().split(BEGIN)[1].split(END)[0].strip() == table(json.loads(RESULTS.read_text()), BENCHMARKS)
    for package in (ROOT / "packages").glob("*/README.md"):
        assert "](../../benchmarks/README.md)" in package.read_text(), package


def test_four_systems_are_linked():
    """The front page links to each example and to the team's servers."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    systems = [*(ROOT / "examples").glob("*/README.md"), ROOT / "server" / "team" / "README.md"]
    assert set(systems) <= {(ROOT / link).resolve() for link in links}


@pytest.mark.parametrize(("into", "years"), [("shorter.csv", ("2013",)), ("recent.csv", ("2015", "2016"))])
def test_chapter_4_selects_whole_years(germany_csv, into, years):
    """Its commands select all hours of the years in the text, and no others."""
    page = (ROOT / "4_pipeline" / "README.md").read_text()
    [command] = re.findall(rf'^(?:.* ")?(\w.* germany\.csv) > {into}', page, flags=re.MULTILINE)
    done = subprocess.run(["sh", "-c", command], cwd=germany_csv.parent, capture_output=True, text=True, check=True)
    header, *hours = germany_csv.read_text().splitlines()
    assert done.stdout.splitlines() == [header, *(hour for hour in hours if hour.startswith(years))]
