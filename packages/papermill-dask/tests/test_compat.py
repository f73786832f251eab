"""What the package uses that is not public: each is there, and does what it is used for."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest
from papermill_dask import compat

UPGRADE = "an upgrade changed it: see papermill_dask/compat.py"


@pytest.fixture(scope="module")
def client():
    """A client of a cluster in this process."""
    from distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        yield client


def test_dask_answers_within_a_time(client):
    """A scheduler is asked by `_run_on_scheduler` with a time-out, a worker by `_run` with its error returned."""

    async def name(dask_scheduler) -> str:
        return type(dask_scheduler).__name__

    async def sleep(dask_scheduler) -> None:
        import asyncio

        await asyncio.sleep(60)

    assert compat.ask_scheduler(client, name, 10) == "Scheduler", UPGRADE
    with pytest.raises((OSError, TimeoutError)):
        compat.ask_scheduler(client, sleep, 0.2)
    (worker,) = client.scheduler_info()["workers"]
    assert client.sync(compat.ask_worker, client, worker, int, "3") == 3, UPGRADE
    assert isinstance(client.sync(compat.ask_worker, client, worker, int, "x"), ValueError), UPGRADE


def test_dask_forgets_a_topic(client):
    """The scheduler's broker has `_topics`, from which a topic goes for good."""
    client.subscribe_topic("a topic", print)
    client.log_event("a topic", "an event")
    compat.forget(client, "a topic")
    assert "a topic" not in client._event_handlers, UPGRADE

    async def topics(dask_scheduler) -> list[str]:
        import asyncio

        await asyncio.sleep(0.5)
        return list(dask_scheduler._broker._topics)

    assert "a topic" not in compat.ask_scheduler(client, topics, 10), UPGRADE


def test_dask_keeps_what_a_task_is_asked_by(client):
    """A worker has an id, a status and `log_event`, and asks by `get_task_status`; leases have a timer."""

    def look(dask_worker) -> tuple:
        return dask_worker.id, dask_worker.status.name, callable(dask_worker.log_event)

    ((name, status, logs),) = client.run(look).values()
    assert name, UPGRADE
    assert (status, logs) == ("running", True), UPGRADE
    answer = client.sync(client.scheduler.get_task_status, keys=["unknown"])
    assert answer == {"unknown": None}, UPGRADE
    with client.as_current():
        leases = compat.Leases(name="a")
        assert leases.refresh_callback.callback == leases._refresh_leases, UPGRADE


def test_papermill_has_what_is_used_of_it(tmp_path):
    """The folder of relative paths, the reading of ``-p``, and a client that sets its kernel up by a context."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.iorw import papermill_io

    before = compat.folder_of_papermills_files()
    papermill_io.get_handler("a file").cwd(str(tmp_path))
    try:
        assert Path(compat.folder_of_papermills_files()) == tmp_path, UPGRADE
    finally:
        papermill_io.get_handler("a file").cwd(before)
    assert [compat.read_parameter(text) for text in ("1", "1.5", "True", "None", "a")] == [1, 1.5, True, None, "a"]
    assert "with self.setup_kernel(" in inspect.getsource(PapermillNotebookClient.execute), UPGRADE
    assert not asyncio.iscoroutinefunction(PapermillNotebookClient.process_message), UPGRADE
