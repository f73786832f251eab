"""The real thing, once for all tests: a clone of this tree, its servers on free ports, its pipeline run."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from workplace import BIN, ROOT, RUN_SECONDS, Servers, environment_of, new_workplace, processes_of, required

# The same examples everywhere, and no folder of them in the repository; what is slow on a busy machine is no fault.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_xdist_make_scheduler(config, log):
    """Run a file's tests in one process, but all tests that need the one set of servers in the same one."""
    from xdist.scheduler import LoadScopeScheduling

    class OneSetOfServers(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, test, *_ = nodeid.split("[")[0].split("::")
            return "servers" if needs_servers(test, arguments_of(file)) else file

    return OneSetOfServers(config, log)


@functools.cache
def arguments_of(file: str) -> dict[str, list[str]]:
    """Return the arguments of each test and fixture of a file, and of the fixtures beside it."""
    files = [path for path in ((ROOT / file).with_name("conftest.py"), ROOT / file) if path.exists()]
    text = "\n".join(path.read_text() for path in files)
    found = re.findall(r"^def (\w+)\(([^)]*)\)", text, flags=re.MULTILINE)
    return {name: re.findall(r"\w+", arguments) for name, arguments in found}


def needs_servers(name: str, arguments: dict[str, list[str]]) -> bool:
    """Tell whether a test or fixture asks for the fixture `servers`, by itself or through others."""
    asked = arguments.get(name, [])
    return bool({"servers", "promoted", "in_workplace"} & set(asked)) or any(
        needs_servers(fixture, arguments) for fixture in asked if fixture in arguments
    )


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory) -> None:
    """Keep the list of a user's clones, which `workshop up` and `workshop config` write, out of this user's home."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def servers(tmp_path_factory) -> Iterator[Servers]:
    """A clone in which `make run` was typed: servers up, pipeline run, a model in production."""
    root, environment = new_workplace(tmp_path_factory.mktemp("clone"))
    del environment["DASK_PAPERMILL_DASK__KERNEL_IMPORTS"]  # kernels are warm, as they are for users
    began = time.monotonic()
    try:
        # The environment is this one; `-o` says that it need not be installed again.
        done = subprocess.run(
            ["make", "-o", ".venv/installed", f"BIN={BIN}", "run"],
            cwd=root, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        there = Servers(root, environment, done.stdout, time.monotonic() - began)
        there.environment |= there.settings.exports()
        yield there
    finally:
        stopped = subprocess.run(
            [BIN / "workshop", "down"], cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert not processes_of(root), "`workshop down` left processes"


@pytest.fixture(scope="session")
def promoted(servers) -> Servers:
    """The same; the name says that a model in production is what the test is about."""
    return servers


@pytest.fixture
def in_workplace(servers, monkeypatch) -> Servers:
    """Make this process see the clone's servers, as a notebook's kernel does."""
    with environment_of(servers.environment):
        monkeypatch.chdir(servers.pipeline)
        yield servers
        monkeypatch.undo()  # later it would put back variables of this environment into the one before


@pytest.fixture(scope="session")
def germany_csv(tmp_path_factory) -> Path:
    """A processed CSV of the embedded sample."""
    from workshop.data.prepare import load_or_make

    file = tmp_path_factory.mktemp("germany") / "germany.csv"
    load_or_make(file)
    return file


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, driven by Playwright, whose event loop would be in the way of other modules' tests."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    required("Chromium", program)
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=arguments)
        yield chromium
        chromium.close()
