"""File transfer between the client and a worker without shared disk, on a real cluster."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from hosts import Cluster, new_cluster
from papermill_dask import EngineError
from papermill_dask.client.stage import Declaration
from papermill_dask.client.transfer import fetch, scratch_folder
from programs import small_disk, wait_for

MB = 10**6


@dataclass
class Transfer:
    """Sends files to the one worker of a cluster, whose store is in ``disk``, and fetches them."""

    cluster: Cluster
    client: object
    worker: str
    disk: Path
    stacks: dict[str, contextlib.ExitStack] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The root folder of the worker's store."""
        (directory,) = (self.disk / "dask-scratch-space").glob("worker-*/")
        return directory / "papermill-dask"  # created by the first transfer

    def pid(self, name: str) -> int:
        """Return the process id of the scheduler or the worker."""
        return self.cluster.processes[name].pid

    def scratch_folders(self) -> list[Path]:
        """Return the current scratch folders on the worker."""
        return list(self.root.glob("scratch/*"))

    def incoming(self) -> list[Path]:
        """Return the files that the worker is receiving."""
        return list(self.disk.glob("dask-scratch-space/worker-*/papermill-dask/scratch/*/incoming"))

    def send(self, folder, *deps, outs=(), links_to=()) -> str:
        """Send files to the worker; return the scratch folder, which exists until `remove`."""
        stack = contextlib.ExitStack()
        declaration = Declaration(deps, tuple(outs), links_to=links_to)
        scratch = stack.enter_context(scratch_folder(self.client, self.worker, folder, declaration))
        self.stacks[scratch] = stack
        return scratch

    def fetch(self, scratch, folder, *outs) -> None:
        """Fetch files from the worker."""
        fetch(self.client, self.worker, scratch, folder, Declaration((), outs))

    def remove(self, scratch) -> None:
        """Remove a scratch folder on the worker."""
        self.stacks.pop(scratch).close()


@contextlib.contextmanager
def new_transfer(folder: Path, disk: Path):
    """Start a scheduler and one worker with its local directory in ``disk``; end them after the block."""
    from distributed import Client

    disk.mkdir(exist_ok=True)
    with new_cluster(folder) as cluster:
        cluster.start_scheduler()
        cluster.start_worker("worker", resources=None, disk=disk)
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            (name,) = client.sync(client.scheduler.identity)["workers"]
            yield Transfer(cluster, client, name, disk)
    shutil.rmtree(disk, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster for tests that do not damage it."""
    place = tmp_path_factory.mktemp("cluster")
    with new_transfer(place / "cluster", place / "disk") as running:
        yield running
        assert running.scratch_folders() == []


@pytest.fixture
def folder(tmp_path):
    """The client's working folder."""
    place = tmp_path / "stage"
    place.mkdir()
    yield place
    # pytest would keep it, and it may have a gigabyte.
    shutil.rmtree(place)


@pytest.fixture
def scratch(cluster, folder):
    """An empty scratch folder on the worker."""
    path = cluster.send(folder)
    yield Path(path)
    cluster.remove(path)


def tree(folder: Path) -> dict[str, tuple]:
    """Return the contents of a folder: path to (content, mode), or to None for a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
    }


def write(file: Path, content: bytes = b"content", mode: int = 0o644) -> Path:
    """Write a file, creating its parent folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    return file


def write_large(file: Path, size: int) -> None:
    """Write ``size`` bytes, as distinct blocks of 1 MB."""
    block = os.urandom(MB - 8)
    with file.open("wb") as content:
        for number in range(size // MB):
            content.write(number.to_bytes(8, "little") + block)


@contextlib.contextmanager
def growth(**pids):
    """Yield a dict of each process's maximal growth of memory (bytes), complete after the block."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    first = {name: process.memory_info().rss for name, process in processes.items()}
    grown = dict.fromkeys(processes, 0)
    over = threading.Event()

    def watch():
        while not over.wait(0.02):
            for name, process in processes.items():
                grown[name] = max(grown[name], process.memory_info().rss - first[name])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        over.set()
        watcher.join()


@pytest.mark.soak
def test_transfer_of_1_GB_passes_in_chunks(cluster, folder):
    """For 1 GB sent and fetched, scheduler, client and worker grow by less than 200 MB; then nothing is sent again."""
    write_large(folder / "large", 1000 * MB)
    with growth(scheduler=cluster.pid("scheduler"), client=os.getpid(), worker=cluster.pid("worker")) as grown:
        scratch = cluster.send(folder, "large")
        os.link(Path(scratch, "large"), Path(scratch, "made"))
        cluster.fetch(scratch, folder, "made")
        cluster.remove(scratch)
    assert max(grown.values()) < 200 * MB, grown
    assert subprocess.run(["cmp", folder / "large", folder / "made"], check=False).returncode == 0
    (kept,) = [file for file in (cluster.root / "files").iterdir() if file.stat().st_size == 1000 * MB]
    before = kept.stat().st_ino
    scratch = cluster.send(folder, "large")
    assert kept.stat().st_ino == before
    assert not Path(scratch).parent.joinpath("incoming").exists()
    cluster.remove(scratch)
    kept.unlink()


def test_transfer_keeps_names_modes_and_empty_things(cluster, folder):
    """Names with spaces, quotes, umlauts or newlines, executable bits, empty files and folders are preserved."""
    write(folder / "data" / "two words" / 'it\'s "ä"\n.txt')
    write(folder / "data" / "run", b"#!/bin/sh\n", 0o755)
    write(folder / "data" / "empty", b"", 0o640)
    (folder / "data" / "nothing" / "in here").mkdir(parents=True)
    write(folder / "-x *", bytes(range(256)))
    write(folder / "twin", bytes(range(256)), 0o755)
    before = tree(folder)
    scratch = cluster.send(folder, "data", "data/run", "-x *", "twin", outs=["data"])
    assert tree(Path(scratch)) == before
    shutil.rmtree(folder / "data")
    (folder / "twin").unlink()
    cluster.fetch(scratch, folder, "data", "twin", "data/run")
    assert tree(folder) == before
    cluster.remove(scratch)


def test_transfer_creates_parent_folders_of_outs(cluster, folder):
    """For an out `results/x`, the folder `results` is created if the client has it."""
    (folder / "results").mkdir()
    scratch = cluster.send(folder, outs=["results/x", "unknown/x"])
    assert tree(Path(scratch)) == {"results": None}
    cluster.remove(scratch)


def test_send_follows_links_inside_the_folder(cluster, folder):
    """A link within the folder, or into an allowed one (DVC's cache), is sent as its target's content."""
    write(folder / "real")
    cache = write(folder.parent / "cache" / "ab")
    (folder / "data").mkdir()
    (folder / "data" / "near").symlink_to("../real")
    (folder / "far").symlink_to(cache)
    scratch = cluster.send(folder, "data", "far", links_to=(cache.parent,))
    assert tree(Path(scratch)) == {"data": None, "data/near": (b"content", 0o644), "far": (b"content", 0o644)}
    assert not Path(scratch, "far").is_symlink()
    cluster.remove(scratch)


def trap(folder: Path) -> None:
    """Fill a folder with paths that must not be transferred."""
    outside = write(folder.parent / "outside" / "secret")
    (folder / "link").symlink_to(outside)
    (folder / "way").symlink_to(outside.parent)
    (folder / "members").mkdir()
    (folder / "members" / "link").symlink_to(outside)
    (folder / "hanging").mkdir()
    (folder / "hanging" / "link").symlink_to("nowhere")
    (folder / "circle" / "in").mkdir(parents=True)
    (folder / "circle" / "in" / "again").symlink_to("../../circle")
    (folder / "itself").symlink_to("itself")
    (folder / "special").mkdir()
    os.mkfifo(folder / "special" / "pipe")


LEAVING = ["../outside/secret", "a/../../outside/secret", "/etc/hostname", ".", "", "link", "way/secret", "itself"]
TRAPS = [*LEAVING, "members", "hanging", "circle", "special"]


@pytest.mark.parametrize("path", [*TRAPS, "missing"])
def test_send_rejects_paths_outside_the_folder(cluster, folder, path):
    """Paths and links out of the folder, circular links and pipes are errors that name the path; nothing is sent."""
    trap(folder)
    before = cluster.scratch_folders()
    with pytest.raises(EngineError, match="cannot be transferred") as caught:
        cluster.send(folder, path)
    assert path in str(caught.value.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert cluster.scratch_folders() == before


@pytest.mark.parametrize("path", TRAPS)
def test_fetch_rejects_paths_outside_the_scratch_folder(cluster, folder, scratch, path):
    """A notebook cannot make the client fetch other files of the worker."""
    trap(scratch)
    write(scratch / "fine")
    with pytest.raises(EngineError, match="cannot be transferred"):
        cluster.fetch(str(scratch), folder, "fine", path)
    assert tree(folder) == {}
    shutil.rmtree(scratch.parent / "outside")


def test_fetch_does_not_write_through_links(cluster, folder, scratch):
    """Nothing is written to a linked folder outside of the working folder; an out that is a link is replaced."""
    outside = write(folder.parent / "outside" / "kept").parent
    (folder / "results").symlink_to(outside)
    (folder / "out").symlink_to(outside / "kept")
    write(scratch / "results" / "kept", b"new")
    write(scratch / "out", b"new")
    with pytest.raises(EngineError, match="cannot be transferred"):
        cluster.fetch(str(scratch), folder, "results/kept")
    cluster.fetch(str(scratch), folder, "out")
    assert (folder / "out").read_bytes() == b"new"
    assert tree(outside) == {"kept": (b"content", 0o644)}


def test_fetch_with_missing_outs_is_an_error(cluster, folder, scratch):
    """The error names a missing out, and no other is fetched, unless the declaration is partial."""
    write(scratch / "made")
    with pytest.raises(EngineError, match="did not write") as caught:
        cluster.fetch(str(scratch), folder, "made", "forgotten")
    assert "forgotten" in caught.value.value
    assert "made" not in caught.value.value
    assert tree(folder) == {}
    some = Declaration(outs=("made", "forgotten"), partial=True)
    fetch(cluster.client, cluster.worker, str(scratch), folder, some)
    assert list(tree(folder)) == ["made"]


@pytest.mark.privileged
def test_fetch_replaces_all_or_none(cluster, folder, scratch):
    """If one out cannot be replaced (a mount point), all others stay unchanged."""
    write(folder / "a", b"old")
    write(folder / "b" / "inner", b"old")
    before = {"a": (b"old", 0o644), "b": None, "b/inner": (b"old", 0o644), "z": None}
    for name in ("a", "b/inner", "new/c", "z"):
        write(scratch / name, b"new")
    with small_disk(folder / "z", "64k"):
        with pytest.raises(EngineError, match="into place failed") as caught:
            cluster.fetch(str(scratch), folder, "a", "b", "new/c", "z")
        assert "z" in caught.value.value
        assert tree(folder) == before | {"new": None}
    (folder / "z").rmdir()
    cluster.fetch(str(scratch), folder, "a", "b", "new/c", "z")
    assert {content for content, _ in filter(None, tree(folder).values())} == {b"new"}


@pytest.mark.privileged
@pytest.mark.parametrize(("files", "size"), [(1, 3 * MB), (600, 1)], ids=["bytes", "files"])
def test_fetch_to_a_full_disk_is_an_error(cluster, folder, scratch, files, size):
    """If the client's disk has no space for the bytes or files, the error names the folder; no partial file is left."""
    for number in range(files):
        write(scratch / "out" / str(number), b"x" * size)
    with small_disk(folder, "1m"):
        write(folder / "out" / "old")
        with pytest.raises(EngineError, match="No space left on device") as caught:
            cluster.fetch(str(scratch), folder, "out")
        assert str(folder) in caught.value.expected
        assert tree(folder) == {"out": None, "out/old": (b"content", 0o644)}


@pytest.mark.privileged
@pytest.mark.parametrize(("files", "size"), [(1, 4 * MB), (1200, 1)], ids=["bytes", "files"])
def test_send_to_a_full_disk_is_an_error(tmp_path, folder, files, size):
    """If the worker's disk is full, the error names the store and the scratch folder is removed."""
    for number in range(files):
        write(folder / "dep" / str(number), f"{number:04}".encode() + b"x" * size)
    write(folder / "small")
    with small_disk(tmp_path / "disk", "4m") as disk, new_transfer(tmp_path / "cluster", disk) as cluster:
        with pytest.raises(EngineError, match="No space left on device") as caught:
            cluster.send(folder, "dep")
        assert str(cluster.root) in caught.value.expected
        assert cluster.scratch_folders() == []
        cluster.remove(cluster.send(folder, "small"))


@pytest.mark.parametrize("victim", ["worker", "scheduler"])
@pytest.mark.soak
def test_transfer_to_a_killed_process_is_an_error(tmp_path, folder, victim):
    """If worker or scheduler is killed during a transfer, the client fails within 10 s and keeps its files."""
    write_large(folder / "large", 600 * MB)
    with new_transfer(tmp_path / "cluster", tmp_path / "disk") as cluster:
        died = []

        def kill():
            wait_for(cluster.incoming)
            os.kill(cluster.pid(victim), signal.SIGKILL)
            died.append(time.monotonic())

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(EngineError, match="lost during a file transfer"):
            cluster.send(folder, "large")
        killer.join()
        assert time.monotonic() - died[0] < 10
    assert list(tree(folder)) == ["large"]


def test_send_interrupted_leaves_nothing_on_the_worker(cluster, folder):
    """On Ctrl-C during a transfer the client ends immediately, and its scratch folder is removed."""
    write_large(folder / "large", 600 * MB)
    program = (
        "from pathlib import Path; from distributed import Client\n"
        "from papermill_dask.client.transfer import scratch_folder\n"
        "from papermill_dask.client.stage import Declaration\n"
        f"client = Client({cluster.client.scheduler.address!r}, set_as_default=False)\n"
        f"with scratch_folder(client, {cluster.worker!r}, Path({str(folder)!r}), Declaration(('large',))): pass"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        # Background jobs of a shell ignore SIGINT, and these tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as sender:
        wait_for(cluster.incoming)
        sender.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in sender.communicate(timeout=30)[1]
    assert sender.returncode != 0
    wait_for(lambda: not cluster.scratch_folders(), 20)


@pytest.mark.privileged
def test_open_evicts_the_cache_on_a_full_disk(tmp_path, folder):
    """If the disk is full, cached contents are removed for new ones."""
    write(folder / "old", b"o" * MB)
    write(folder / "new", b"n" * MB)
    with small_disk(tmp_path / "disk", "4m") as disk, new_transfer(tmp_path / "cluster", disk) as cluster:
        cluster.remove(cluster.send(folder, "old"))
        write(disk / "other", b"x" * int(1.5 * MB))
        cluster.remove(cluster.send(folder, "new"))
        assert [file.read_bytes()[:1] for file in (cluster.root / "files").iterdir()] == [b"n"]
