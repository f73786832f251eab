"""Shared by all tests: a clone of this tree with its servers on free ports, in which the pipeline was run."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from served import data_file, germany_csv, model, served  # noqa: F401 - fixtures
from workplace import (
    BIN,
    TAKEN,
    Servers,
    copy_tree,
    environment_for,
    environment_of,
    processes_of,
    pytest_runtest_setup,  # noqa: F401 - a hook
)

from workshop.exports import exports_of

# The order in which files are begun: the longest first, so that no process works alone at the end. The second servers
# start from a copy of the first ones: they come when the latter have begun, as there are three processes.
ORDER = [
    "servers", "tests/test_standalone.py", "tests/servers/test_supervisor.py", "tests/test_another_problem.py",
    "tests/test_take_it_home.py", "tests/servers/test_two_clones.py", "tests/teaching/test_headstart.py",
    "tests/servers/test_tracking_server.py", "tests/teaching/test_checkpoints.py", "second servers",
    "4_pipeline/tests/template/learn/test_models.py", "small server",
    *(f"4_pipeline/tests/template/raw/test_{name}.py" for name in ("validation", "bad_input", "own_stage")),
]  # fmt: skip
# In the environment of all that a session starts: the mark by which these processes are found, and a file's name.
IS_FIRST_PROCESS = "TEST_SESSION" not in os.environ
SESSION = os.environ.setdefault("TEST_SESSION", tempfile.mktemp(prefix="test-session-"))
GROUPS = Path(f"{SESSION}.groups")
WALKED = ("tests/browser",)  # minutes, of which `make test` has five
NIGHT = (
    "tests/servers/test_two_clones", "tests/servers/test_postgresql", "tests/test_another_problem",
    "tests/test_standalone",
)  # fmt: skip
SECOND_SERVERS = ("tests/browser", "tests/test_projects", "tests/test_tracking_chapter")


def group_of(item) -> str:
    """Return a test's group, which runs in one process: its file, or those tests that share servers."""
    file = item.nodeid.split("::")[0]
    if "small_server" in item.fixturenames:
        return "small server"
    if "servers" not in item.fixturenames:
        return file
    return "second servers" if file.startswith(SECOND_SERVERS) else "servers"


def pytest_configure(config):
    """Start the process that ends leftover processes when the session ends, is interrupted or is killed."""
    if IS_FIRST_PROCESS:
        command = [sys.executable, Path(__file__).with_name("leftovers.py"), SESSION]
        # In a new session, so that Ctrl-C does not reach it.
        watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        config.add_cleanup(watcher.communicate)


def pytest_collection_modifyitems(config, items):
    """Order the tests by their groups; a process of pytest-xdist leaves these to the one that hands out the tests."""
    groups = {item.nodeid: group_of(item) for item in items}
    for item in items:
        for marker, names in {"walk": WALKED, "night": NIGHT}.items():
            if item.nodeid.startswith(names):
                item.add_marker(marker)
    order = {name: number for number, name in enumerate(ORDER)}
    # Within a group the file last whose last test ends the warm kernels.
    items.sort(key=lambda item: (order.get(groups[item.nodeid], len(order)), "test_pipeline.py" in item.nodeid))
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        file = GROUPS.with_suffix(f".{worker}")
        file.write_text(json.dumps(groups))
        file.replace(GROUPS)


def pytest_xdist_make_scheduler(config, log):
    """Run each group in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        @functools.cached_property
        def _groups(self) -> dict[str, str]:
            groups = json.loads(GROUPS.read_text())
            GROUPS.unlink()
            return groups

        def _split_scope(self, nodeid):
            return self._groups[nodeid]

    return ByGroup(config, log)


@pytest.fixture(scope="session")
def new_database(tmp_path_factory) -> Path:
    """An empty tracking database to copy, since MLflow takes five seconds to create one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all processes
    database = folder / "new.db"
    program = "import sys, workshop.servers.tracking_server as made; made.ensure_database(made.Path(sys.argv[1]))"
    with FileLock(folder / "new.lock"):
        subprocess.run([sys.executable, "-c", program, database], check=True)
    return database


@pytest.fixture(scope="session")
def servers(request, tmp_path_factory) -> Iterator[Servers]:
    """A clone after `make run`: servers up, pipeline run, a model in production.

    The first process that requests it runs the pipeline; the others start from a copy of that clone and a backup of
    its servers, where all stages are up to date.
    """
    root, temporary = tmp_path_factory.mktemp("clone"), Path(tempfile.mkdtemp())  # short, for paths of sockets
    clone = Servers(root, environment_for(root) | {"TMPDIR": str(temporary)})
    for name in TAKEN:
        (temporary / name).mkdir()
        (temporary / name).chmod(0o777)
        (temporary / name / "papermill_dask.py").write_text("raise SystemExit('a module of another user')")
    kept = tmp_path_factory.getbasetemp().parent / "after_make_run"  # the parent is that of all processes
    try:
        with FileLock(f"{kept}.lock"):
            if kept.exists():
                shutil.copytree(kept / "clone", root, symlinks=True, dirs_exist_ok=True)
                clone.run(BIN / "workshop", "backup", "--restore", kept / "backup.tar")
            else:
                copy_tree(root)
            del clone.environment["DASK_PAPERMILL_DASK__KERNEL_IMPORTS"]  # warm kernels, as for users
            # The environment is this one; `-o` says that it need not be installed again.
            clone.output = clone.run("make", "-o", ".venv/installed", f"BIN={BIN}", "run").stdout
            is_copied = any(group_of(item) == "second servers" for item in request.session.items)
            if "PYTEST_XDIST_WORKER" in os.environ and is_copied and not kept.exists():
                shutil.copytree(root, kept / "clone", symlinks=True, ignore=shutil.ignore_patterns("state"))
                clone.run(BIN / "workshop", "backup", kept / "backup.tar")
        clone.environment |= exports_of(clone.settings)
        yield clone
    finally:
        clone.run(BIN / "workshop", "down")
        assert not processes_of(root), "`workshop down` left processes"
        shutil.rmtree(temporary)


@pytest.fixture
def in_workplace(servers, monkeypatch) -> Servers:
    """Set this process's environment to that of a notebook kernel in the clone."""
    with environment_of(servers.environment):
        monkeypatch.chdir(servers.pipeline)
        yield servers
        monkeypatch.undo()  # a later undo would restore variables into the wrong environment


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, driven by Playwright; per module, since its event loop disturbs tests of other modules."""
    from browsing import chromium

    with chromium() as started:
        yield started
