"""Documentation that is true: links resolve, commands exist and parse, chapters share their headings."""

from __future__ import annotations

import json
import re
import shlex

import click
import pytest
from workplace import ROOT, files_of_tree, is_moved_to

from workshop.cli import main

PAGES = [ROOT / name for name in files_of_tree("*.md")]
CHAPTERS = ["1_starting_point", "2_tracking", "3_projects", "4_pipeline"]
HEADINGS = ["What you will learn", "Before you start", "Time", "Steps", "Take-away"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def name(path):
    """A page's name in test ids."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page):
    """Every link to a file of the repository leads somewhere."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page}: {target}"


MADE = {".ipynb_checkpoints", "executed", ".environment"}
NOTEBOOKS = [path for path in sorted(ROOT.glob("[1-4]_*/**/*.ipynb")) if not MADE & set(path.parts)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_relative_links_of_notebooks_resolve(notebook):
    """The same for the text cells of notebooks."""
    for target in re.findall(r"\]\(([^)#\s\"]+)[^)\"]*\)", notebook.read_text()):
        if not re.match(r"[a-z]+:|attachment", target) and "\\" not in target:
            assert (notebook.parent / target).exists(), f"{notebook}: {target}"


def commands(page):
    """The lines of a page's shell blocks, and its inline code, that call one of our programs."""
    text = page.read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fences if language in ("bash", "sh", "console")]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *re.findall(r"`((?:workshop|make) [^`]+)`", text)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_and_their_options_parse(page):
    """`workshop ...` names a command with options that it has; `make ...` a target."""
    for line in commands(page):
        for part in re.split(r"&&|;|\|", line):
            words = shlex.split(part.strip(), comments=True)
            if words[:1] == ["make"]:
                assert {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= TARGETS, line
            if words[:1] == ["workshop"] and "..." not in words:
                check_parses(words[1:], line)


def typed(path):
    """The text that a reader types or opens: a page or a notebook without blocks that show outputs, a program."""
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    return re.sub(r"^ *```text\n.*?```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, ROOT / "1_starting_point" / "dashboard" / "app.py"], ids=name)
def test_texts_type_no_port_that_servers_move_to(path):
    """Commands and links use exported addresses, or ports that `up` never takes: a usual one may be another clone's."""
    if path == ROOT / "examples" / "posts_over_ssh" / "README.md":  # on the laptop it says which ports SSH forwards
        return
    ports = re.findall(r"(?:127\.0\.0\.1|localhost|--port|PORT=)[ :=]?(\d{4,5})", typed(path))
    assert [port for port in ports if is_moved_to(int(port))] == []


def check_parses(words, line):
    """Let click parse the words without running anything."""
    command, context = main, click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command = command.get_command(context, words.pop(0))
        assert command, line
    if isinstance(command, click.Group) or any(re.search(r"[A-Z]{2,}|[<>|]", word) for word in words):
        return
    try:
        command.make_context("workshop", list(words), parent=context, resilient_parsing=False)
    except click.exceptions.MissingParameter:
        pass  # named in prose without its arguments
    except click.exceptions.Exit:
        pass  # --help


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapters_share_their_headings(chapter):
    """What, before, time, steps, take-away, and a link to what comes next."""
    text = (ROOT / chapter / "README.md").read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS
    following = dict(zip(CHAPTERS, [*CHAPTERS[1:], ""], strict=True))[chapter]
    assert (following or "README") in text.rstrip().splitlines()[-1]


def test_readme_tree_names_what_is_there():
    """The annotated tree of the front page lists files and folders that exist."""
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(1_starting_point/.*?)```", text, flags=re.DOTALL)[1]
    for entry in re.findall(r"^([\w.]\S*)", tree, flags=re.MULTILINE):
        assert (ROOT / entry.rstrip("/")).exists(), entry
