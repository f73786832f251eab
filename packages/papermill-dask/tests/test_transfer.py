"""A stage's files on their way to a worker that shares no disk with the client, and back; on a real cluster."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from papermill_dask import EngineError
from papermill_dask.files import Replacement, fetch, remove, send
from papermill_dask.stage import Declaration
from papermill_dask.store import Entry, Store, entries, serve
from programs import BIN, clean_environment, required

MB = 10**6


@dataclass
class Cluster:
    """A scheduler and a worker, each a process; the worker's store and scratch folders lie in ``disk``."""

    client: object
    worker: str
    scheduler_pid: int
    worker_pid: int
    disk: Path
    log: Path

    @property
    def root(self) -> Path:
        """The worker's store."""
        return self.disk / "dask-scratch-space" / "papermill-dask"

    def scratch_folders(self) -> list[Path]:
        """The scratch folders on the worker now."""
        return list((self.root / "scratch").iterdir())

    def send(self, folder, *deps, outs=(), **options) -> str:
        """Send files to the worker."""
        return send(self.client, self.worker, folder, Declaration(deps, tuple(outs)), **options)

    def fetch(self, scratch, folder, *outs, **options) -> list[str]:
        """Fetch files from the worker."""
        return fetch(self.client, self.worker, scratch, folder, Declaration((), outs), **options)

    def remove(self, scratch) -> None:
        """Remove a scratch folder on the worker."""
        remove(self.client, self.worker, scratch)


@contextlib.contextmanager
def new_cluster(folder: Path, disk: Path):
    """Start a scheduler and one worker that has nothing but ``disk``; end them after."""
    from distributed import Client

    folder.mkdir()
    disk.mkdir(exist_ok=True)
    file = folder / "scheduler.json"
    common = {"cwd": folder, "env": clean_environment()}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, disk, ignore_errors=True)

        def start(name, *command):
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen([BIN / "dask", *command], stdout=log, stderr=log, **common)
            stack.callback(end, process)
            return process

        listen = ("--host", "127.0.0.1", "--no-dashboard")
        scheduler = start("scheduler", "scheduler", *listen, "--port", "0", "--scheduler-file", file)
        address = wait_for(lambda: file.exists() and file.read_text() and json.loads(file.read_text())["address"])
        worker = start("worker", "worker", address, *listen, "--nthreads", "1", "--no-nanny", "--local-directory", disk)
        client = stack.enter_context(Client(address, set_as_default=False))
        client.wait_for_workers(1, timeout=60)
        (name,) = client.scheduler_info(n_workers=-1)["workers"]
        yield Cluster(client, name, scheduler.pid, worker.pid, disk, folder / "worker.log")


def end(process: subprocess.Popen) -> None:
    """Terminate a process and wait for it."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(condition, seconds=60):
    """Return what ``condition`` gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster for the tests that leave it whole."""
    place = tmp_path_factory.mktemp("cluster")
    with new_cluster(place / "cluster", place / "disk") as running:
        yield running
        assert running.scratch_folders() == []


@pytest.fixture
def folder(tmp_path):
    """The client's working folder."""
    place = tmp_path / "stage"
    place.mkdir()
    yield place
    # A gigabyte is too much for pytest to keep.
    shutil.rmtree(place)


@pytest.fixture
def sent(cluster, folder):
    """A scratch folder on the worker, with nothing in it."""
    scratch = cluster.send(folder)
    yield Path(scratch)
    cluster.remove(scratch)


@contextlib.contextmanager
def small_disk(place: Path, options: str):
    """Mount a file system in memory at ``place``."""
    required("root, to mount a small disk", hasattr(os, "getuid") and os.getuid() == 0)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def tree(folder: Path) -> dict[str, tuple]:
    """What lies in a folder: path to content and mode, or to None for a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
    }


def write(file: Path, content: bytes = b"content", mode: int = 0o644) -> Path:
    """Write a file, its folders made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    return file


def write_large(file: Path, size: int) -> None:
    """Write ``size`` bytes, a number of MB, no two of which are alike."""
    block = os.urandom(MB - 8)
    with file.open("wb") as content:
        for number in range(size // MB):
            content.write(number.to_bytes(8, "little") + block)


@contextlib.contextmanager
def growth(**pids):
    """Yield a dict that in the end holds by how many bytes each process was ever larger than at first."""
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
    """1 GB there and back: scheduler, client and worker grow by less than 200 MB; the second time nothing is sent."""
    write_large(folder / "large", 1000 * MB)
    with growth(scheduler=cluster.scheduler_pid, client=os.getpid(), worker=cluster.worker_pid) as grown:
        scratch = cluster.send(folder, "large")
        os.link(Path(scratch, "large"), Path(scratch, "made"))
        assert cluster.fetch(scratch, folder, "made") == ["made"]
        cluster.remove(scratch)
    assert max(grown.values()) < 200 * MB, grown
    assert subprocess.run(["cmp", folder / "large", folder / "made"], check=False).returncode == 0
    (kept,) = [file for file in (cluster.root / "files").glob("*/*") if file.stat().st_size == 1000 * MB]
    before = kept.stat().st_ino
    scratch = cluster.send(folder, "large")
    assert kept.stat().st_ino == before
    assert not list(Path(scratch).parent.glob("incoming/*"))
    cluster.remove(scratch)
    kept.unlink()


def test_transfer_keeps_names_modes_and_empty_things(cluster, folder):
    """Spaces, quotes, umlauts, line ends in names, executable bits, empty files and folders: all come as they are."""
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
    assert cluster.fetch(scratch, folder, "data", "twin", "data/run") == ["data", "twin"]
    assert tree(folder) == before
    cluster.remove(scratch)


def test_transfer_of_many_small_files_takes_few_messages(cluster, folder):
    """A thousand small files: there and back in a few messages, not in a round trip for each."""
    for number in range(1000):
        write(folder / "many" / str(number), str(number).encode())
    asked = cluster.log.read_text().count("Run out-of-band")
    scratch = cluster.send(folder, "many")
    before = tree(folder)
    shutil.rmtree(folder / "many")
    cluster.fetch(scratch, folder, "many")
    assert tree(folder) == before
    cluster.remove(scratch)
    assert 0 < cluster.log.read_text().count("Run out-of-band") - asked < 12


def test_transfer_makes_the_folders_of_outs(cluster, folder):
    """A notebook that writes `results/x` finds the folder `results`, if the client has it."""
    (folder / "results").mkdir()
    scratch = cluster.send(folder, outs=["results/x", "unknown/x"])
    assert tree(Path(scratch)) == {"results": None}
    cluster.remove(scratch)


def test_send_follows_links_inside_the_folder(cluster, folder):
    """A link within the folder, and one into a place that is allowed (DVC's cache), arrives as what it leads to."""
    write(folder / "real")
    cache = write(folder.parent / "cache" / "ab")
    (folder / "data").mkdir()
    (folder / "data" / "near").symlink_to("../real")
    (folder / "far").symlink_to(cache)
    allowed = Declaration(("data", "far"), links_to=(cache.parent,))
    scratch = send(cluster.client, cluster.worker, folder, allowed)
    assert tree(Path(scratch)) == {"data": None, "data/near": (b"content", 0o644), "far": (b"content", 0o644)}
    assert not Path(scratch, "far").is_symlink()
    cluster.remove(scratch)


def trap(folder: Path) -> None:
    """Fill a folder with what must not travel."""
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


@pytest.mark.parametrize("path", TRAPS)
def test_send_refuses_what_leaves_the_folder(cluster, folder, path):
    """Paths and links out of the folder, in the middle too, circles and pipes: refused by name, nothing is sent."""
    trap(folder)
    before = cluster.scratch_folders()
    with pytest.raises(EngineError, match="cannot travel") as caught:
        cluster.send(folder, path)
    assert path in str(caught.value.value)
    assert str(folder) in caught.value.expected
    assert caught.value.next_step
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert cluster.scratch_folders() == before


@pytest.mark.parametrize("path", TRAPS)
def test_fetch_refuses_what_leaves_the_scratch_folder(cluster, folder, sent, path):
    """The same on the way back: a notebook cannot make the client fetch the worker's other files."""
    trap(sent)
    write(sent / "fine")
    with pytest.raises(EngineError, match="cannot travel"):
        cluster.fetch(str(sent), folder, "fine", path)
    assert tree(folder) == {}
    shutil.rmtree(sent.parent / "outside")


def test_fetch_writes_through_no_link(cluster, folder, sent):
    """A folder of the client that is a link out of the working folder gets nothing; an out that is one is replaced."""
    outside = write(folder.parent / "outside" / "kept").parent
    (folder / "results").symlink_to(outside)
    (folder / "out").symlink_to(outside / "kept")
    write(sent / "results" / "kept", b"new")
    write(sent / "out", b"new")
    with pytest.raises(EngineError, match="cannot travel"):
        cluster.fetch(str(sent), folder, "results/kept")
    cluster.fetch(str(sent), folder, "out")
    assert (folder / "out").read_bytes() == b"new"
    assert tree(outside) == {"kept": (b"content", 0o644)}


def test_store_serves_its_own_scratch_folders_only(cluster, tmp_path):
    """A path that is no scratch folder of the store is neither read nor removed."""
    write(tmp_path / "files" / "x")
    for operation, *arguments in [("read", [("x", 0, 1)]), ("list_outs", ["x"]), ("remove",)]:
        (answer,) = cluster.client.run(
            serve, operation, str(tmp_path / "files"), *arguments, workers=[cluster.worker]
        ).values()
        assert isinstance(answer, EngineError)
    assert (tmp_path / "files" / "x").exists()


def test_send_names_missing_dependencies(cluster, folder):
    """A dep that is not there is an error before anything is sent."""
    write(folder / "a")
    with pytest.raises(EngineError, match="not all there") as caught:
        cluster.send(folder, "a", "b", "c/d")
    assert "b, c/d" in caught.value.value


def test_fetch_names_missing_outs_and_brings_none(cluster, folder, sent):
    """A declared out that the notebook did not write is named, and no other lands; unless some may be missing."""
    write(sent / "made")
    with pytest.raises(EngineError, match="did not write") as caught:
        cluster.fetch(str(sent), folder, "made", "forgotten")
    assert "forgotten" in caught.value.value
    assert "made" not in caught.value.value
    assert tree(folder) == {}
    some = Declaration(outs=("made", "forgotten"), partial=True)
    assert fetch(cluster.client, cluster.worker, str(sent), folder, some) == ["made"]
    assert list(tree(folder)) == ["made"]


def test_fetch_brings_only_what_differs(cluster, folder, sent):
    """A file that is here with the same content stays the same file; what is no longer made goes."""
    same = write(folder / "out" / "same")
    write(folder / "out" / "old")
    write(folder / "out" / "changed", b"before")
    inode = same.stat().st_ino
    write(sent / "out" / "same")
    write(sent / "out" / "changed", b"after")
    cluster.fetch(str(sent), folder, "out")
    assert same.stat().st_ino == inode
    assert tree(folder / "out") == {"same": (b"content", 0o644), "changed": (b"after", 0o644)}


def test_fetch_leaves_other_links_to_an_out_alone(cluster, folder, sent):
    """DVC's cache may share an out's content by a hard link: a new mode of the out does not reach it."""
    cached = write(folder.parent / "cached", mode=0o444)
    os.link(cached, folder / "out")
    write(sent / "out", mode=0o755)
    cluster.fetch(str(sent), folder, "out")
    assert (folder / "out").stat().st_mode & 0o777 == 0o755
    assert cached.stat().st_mode & 0o777 == 0o444


def test_fetch_lands_all_or_none(cluster, folder, sent):
    """An out that cannot be replaced (a mount point) leaves those before it as they were, too."""
    write(folder / "a", b"old")
    write(folder / "b" / "inner", b"old")
    before = {"a": (b"old", 0o644), "b": None, "b/inner": (b"old", 0o644), "z": None}
    for name in ("a", "b/inner", "new/c", "z"):
        write(sent / name, b"new")
    with small_disk(folder / "z", "size=64k"):
        with pytest.raises(EngineError, match="put in place") as caught:
            cluster.fetch(str(sent), folder, "a", "b", "new/c", "z")
        assert "z" in caught.value.value
        assert tree(folder) == before
    (folder / "z").rmdir()
    cluster.fetch(str(sent), folder, "a", "b", "new/c", "z")
    assert {content for content, _ in filter(None, tree(folder).values())} == {b"new"}


def test_fetch_into_a_file_in_place_of_a_folder_changes_nothing(cluster, folder, sent):
    """`results/x` cannot land where `results` is a file: words, and everything as before."""
    write(folder / "results", b"a file")
    write(folder / "a", b"old")
    write(sent / "a", b"new")
    write(sent / "results" / "x")
    with pytest.raises(EngineError, match="put in place"):
        cluster.fetch(str(sent), folder, "a", "results/x")
    assert tree(folder) == {"results": (b"a file", 0o644), "a": (b"old", 0o644)}


@pytest.mark.parametrize(("files", "size"), [(1, 3 * MB), (600, 1)], ids=["foreseen", "surprising"])
def test_fetch_to_a_full_disk_is_told(cluster, folder, sent, files, size):
    """Too little space here, known before or met on the way: words with the folder; nothing half-written stays."""
    for number in range(files):
        write(sent / "out" / str(number), b"x" * size)
    with small_disk(folder, "size=1m"):
        write(folder / "out" / "old")
        with pytest.raises(EngineError, match="not enough space") as caught:
            cluster.fetch(str(sent), folder, "out")
        assert str(folder) in caught.value.value
        assert f"{files * size:,} bytes" in caught.value.expected
        assert tree(folder) == {"out": None, "out/old": (b"content", 0o644)}


@pytest.mark.parametrize(("files", "size"), [(1, 4 * MB), (1200, 1)], ids=["foreseen", "surprising"])
def test_send_to_a_full_disk_is_told(tmp_path, folder, files, size):
    """Too little space on the worker: words with host, folder and bytes; its scratch folder goes, it serves on."""
    for number in range(files):
        write(folder / "dep" / str(number), f"{number:04}".encode() + b"x" * size)
    write(folder / "small")
    with small_disk(tmp_path / "disk", "size=4m") as disk, new_cluster(tmp_path / "cluster", disk) as cluster:
        with pytest.raises(EngineError, match="not enough space") as caught:
            cluster.send(folder, "dep")
        assert str(cluster.root) in caught.value.value
        assert "bytes free" in caught.value.value
        assert cluster.scratch_folders() == []
        cluster.remove(cluster.send(folder, "small"))


def test_send_removes_nothing_that_a_notebook_needs(cluster, folder):
    """A notebook may change its inputs in place: what the worker keeps of them stays whole for the next."""
    write(folder / "dep", b"what was sent")
    scratch = cluster.send(folder, "dep")
    Path(scratch, "dep").write_bytes(b"spoilt")
    cluster.remove(scratch)
    scratch = cluster.send(folder, "dep")
    assert Path(scratch, "dep").read_bytes() == b"what was sent"
    cluster.remove(scratch)


def test_send_does_not_trust_a_damaged_file(cluster, folder):
    """A kept file that something has written to is sent again."""
    write(folder / "dep", b"to be damaged")
    cluster.remove(cluster.send(folder, "dep"))
    md5 = entries(folder, ["dep"])[0].md5
    kept = cluster.root / "files" / md5[:2] / md5[2:]
    kept.chmod(0o600)
    kept.write_bytes(b"TO BE DAMAGED")
    scratch = cluster.send(folder, "dep")
    assert Path(scratch, "dep").read_bytes() == kept.read_bytes() == b"to be damaged"
    cluster.remove(scratch)


def test_store_notices_a_file_that_changed_meanwhile(tmp_path):
    """A content that is not what its hash says is neither used nor kept."""
    store = Store(tmp_path)
    wanted = [Entry("dep", "0" * 32, 3, 0o644)]
    scratch, missing = store.open(wanted)
    store.receive(scratch, [(missing[0], 0, b"new")])
    with pytest.raises(EngineError, match="changed while it was sent"):
        store.fill(scratch, wanted)
    assert not list((tmp_path / "files").glob("*/*"))
    store.remove(scratch)


@pytest.mark.parametrize("victim", ["worker", "scheduler"])
@pytest.mark.soak
def test_transfer_to_what_dies_ends_in_words(tmp_path, folder, victim):
    """Worker or scheduler killed while files are on their way: an error within 10 s, and nothing changed here."""
    write_large(folder / "large", 600 * MB)
    with new_cluster(tmp_path / "cluster", tmp_path / "disk") as cluster:
        pid = cluster.worker_pid if victim == "worker" else cluster.scheduler_pid
        died = []

        def strike():
            wait_for(lambda: list(cluster.root.glob("scratch/*/incoming/*")))
            os.kill(pid, signal.SIGKILL)
            died.append(time.monotonic())

        killer = threading.Thread(target=strike)
        killer.start()
        with pytest.raises(EngineError, match="lost while files were on their way"):
            cluster.send(folder, "large")
        killer.join()
        assert time.monotonic() - died[0] < 10
    assert list(tree(folder)) == ["large"]


def test_send_interrupted_leaves_nothing_on_the_worker(cluster, folder):
    """Ctrl-C while files are on their way: the client ends at once, and its scratch folder is gone."""
    write_large(folder / "large", 600 * MB)
    program = (
        "from pathlib import Path; from distributed import Client; from papermill_dask.files import send\n"
        "from papermill_dask.stage import Declaration\n"
        f"client = Client({cluster.client.scheduler.address!r}, set_as_default=False)\n"
        f"send(client, {cluster.worker!r}, Path({str(folder)!r}), Declaration(('large',)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        # A shell starts its background jobs deaf to Ctrl-C, and these tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as sender:
        wait_for(lambda: list(cluster.root.glob("scratch/*/incoming/*")))
        sender.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in sender.communicate(timeout=30)[1]
    assert sender.returncode != 0
    wait_for(lambda: not cluster.scratch_folders(), seconds=20)


def test_store_is_not_shared_with_strangers(tmp_path, folder):
    """Where others could have put files into the host's shared folder, the worker uses its own."""
    (tmp_path / "disk" / "dask-scratch-space").mkdir(parents=True)
    (tmp_path / "disk" / "dask-scratch-space" / "papermill-dask").mkdir(mode=0o777)
    (tmp_path / "disk" / "dask-scratch-space" / "papermill-dask").chmod(0o777)
    write(folder / "dep")
    with new_cluster(tmp_path / "cluster", tmp_path / "disk") as cluster:
        scratch = cluster.send(folder, "dep")
        assert Path(scratch, "dep").read_bytes() == b"content"
        assert list(cluster.root.iterdir()) == []
        cluster.remove(scratch)


def test_store_sweeps_what_a_killed_worker_left(tmp_path):
    """The scratch folder of a process that died is gone with the next one made; that of one alive stays."""
    store = Store(tmp_path)
    mine, _ = store.open([])
    program = (
        "import sys, time; from pathlib import Path; from papermill_dask.store import Store\n"
        f"print(Store(Path({str(tmp_path)!r})).open([])[0], flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        left = Path(other.stdout.readline().strip())
        (left / "locked").mkdir(mode=0o000)
        store._sweep()
        assert left.is_dir()
        other.kill()
    store._sweep()
    assert not left.parent.exists()
    assert Path(mine).is_dir()
    store.remove(mine)
    store.remove(mine)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.soak
def test_store_sweeps_what_no_one_asked_for_in_a_day(tmp_path):
    """A client that was killed may leave a scratch folder; after a day it goes, unless a process works in it."""
    store = Store(tmp_path)
    forgotten, used = (Path(store.open([])[0]) for _ in range(2))
    for scratch in (forgotten, used):
        os.utime(scratch.parent, (time.time() - 100_000,) * 2)
    with subprocess.Popen(["sleep", "60"], cwd=used) as notebook:
        store._sweep()
        assert used.is_dir()
        assert not forgotten.exists()
        notebook.kill()
    store.remove(str(used))


def fill(store: Store, folder: Path, *paths: str, **options) -> str:
    """Bring files into a store as the client does, without a cluster; return the scratch folder."""
    wanted = entries(folder, paths)
    scratch, missing = store.open(wanted, **options)
    for entry in wanted:
        if entry.md5 in missing:
            store.receive(scratch, [(entry.md5, 0, (folder / entry.path).read_bytes())])
    store.fill(scratch, wanted)
    return scratch


def test_store_keeps_the_most_recently_used(tmp_path, folder):
    """Above its limit the store lets the least recently used content go, but none that a notebook waits for."""
    store = Store(tmp_path / "store")
    for name in "abc":
        write(folder / name, name.encode() * 100)
        store.remove(fill(store, folder, name))
    store.remove(fill(store, folder, "a"))
    kept = {file.read_bytes()[:1] for file in (tmp_path / "store" / "files").glob("*/*")}
    assert kept == {b"a", b"b", b"c"}
    write(folder / "d", b"d" * 100)
    waiting, missing = store.open(entries(folder, ["c"]))
    assert missing == []
    store.remove(fill(store, folder, "d", limit=300))
    kept = {file.read_bytes()[:1] for file in (tmp_path / "store" / "files").glob("*/*")}
    assert kept == {b"a", b"c", b"d"}
    store.remove(fill(store, folder, "d", limit=0))
    kept = {file.read_bytes()[:1] for file in (tmp_path / "store" / "files").glob("*/*")}
    assert kept == {b"d"}
    store.fill(waiting, entries(folder, ["c"]))
    assert Path(waiting, "c").read_bytes() == b"c" * 100
    store.remove(waiting)


def test_store_is_shared_by_processes(tmp_path, folder):
    """Four processes bring the same files at once: each gets them whole, and they are kept once."""
    for number in range(20):
        write(folder / "data" / str(number), bytes([number]) * 100_000)
    program = (
        "import sys; from pathlib import Path; from papermill_dask.store import Store\n"
        "from papermill_dask.store import entries\n"
        f"folder = Path({str(folder)!r}); wanted = entries(folder, ['data'])\n"
        f"store = Store(Path({str(tmp_path / 'store')!r}))\n"
        "for _ in range(10):\n"
        "    scratch, missing = store.open(wanted, 1_000_000)\n"
        "    store.receive(scratch, [(e.md5, 0, (folder / e.path).read_bytes()) for e in wanted if e.md5 in missing])\n"
        "    store.fill(scratch, wanted)\n"
        "    assert entries(Path(scratch), ['data']) == wanted\n"
        "    store.remove(scratch)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 4
    files = list((tmp_path / "store" / "files").glob("*/*"))
    assert 0 < len(files) <= 20
    assert list((tmp_path / "store" / "scratch").iterdir()) == []


def test_replacement_mends_what_a_killed_client_left(folder):
    """A client killed between two renames: the next one puts the old out back and leaves nothing hidden."""
    write(folder / "out", b"old")
    program = (
        "import time; from pathlib import Path; from papermill_dask.files import Replacement\n"
        f"folder = Path({str(folder)!r})\n"
        "replacement = Replacement(folder, ['out']); replacement.prepare([], [])\n"
        "(folder / 'out').rename(replacement.staged('out').parents[1] / 'old' / 'out')\n"
        "print('half done', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "half done\n"
        (left,) = folder.iterdir()
        with Replacement(folder, ["other"]) as replacement:
            replacement.prepare([], [])
            assert left.exists(), "the other client is still at it"
        client.kill()
    with Replacement(folder, ["other"]) as replacement:
        replacement.prepare([], [])
    assert tree(folder) == {"out": (b"old", 0o644)}


def test_replacement_refuses_a_wrong_content(folder):
    """What arrives is checked by its hash before anything is put in place."""
    write(folder / "out", b"old")
    wrong = Entry("out", "0" * 32, 3, 0o644)
    with Replacement(folder, ["out"]) as replacement:
        replacement.prepare([wrong], [])
        replacement.staged("out").write_bytes(b"new")
        with pytest.raises(EngineError, match="changed while it was fetched"):
            replacement.finish([wrong], {"out"})
    assert tree(folder) == {"out": (b"old", 0o644)}
