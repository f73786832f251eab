"""Receipts: what is kept, what is found again, and what is left when something breaks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import receipts


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """An empty folder to keep files in; the current folder is another empty one."""
    for name in ("store", "laptop"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "laptop")
    return tmp_path / "store"


def kept(store: Path, text: str, name: str = "a") -> Path:
    """Keep a text, and return where it is."""
    with receipts.keep(f"receipts/{name}.json", store, "some_stage") as file:
        file.write_text(text)
    return receipts.locate(f"receipts/{name}.json")


def test_same_content_is_kept_once(store):
    """A file is kept under its md5, read-only; its receipt says nothing of when and by whom."""
    file = kept(store, "text\n")
    assert file == kept(store, "text\n", "b") == store / "e1" / "cbb0c3879af8347246f12c559a86b5"
    assert [path for path in store.rglob("*") if path.is_file()] == [file]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o7777) == (0o444, 0o2775)
    content = json.loads(Path("receipts/a.json").read_text())
    assert content == {"path": str(file), "md5": "e1cbb0c3879af8347246f12c559a86b5", "size": 5, "stage": "some_stage"}
    assert Path("receipts/a.json").read_text() == Path("receipts/b.json").read_text()


def test_killed_process_leaves_nothing_for_long(store):
    """The unfinished file of a killed process goes when the next is kept; that of a living one stays."""
    code = "import receipts, sys\nwith receipts.keep('r.json', sys.argv[1], 's'): print(flush=True); input()"
    folder = Path(receipts.__file__).parent
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); exec({code!r})", store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        kept(store, "text")
        assert len(list(store.glob(".unfinished*"))) == 1
        process.send_signal(signal.SIGKILL)
    kept(store, "text")
    assert list(store.glob(".unfinished*")) == []


def test_damaged_file_is_noticed_and_replaced(store):
    """The error names the stage that made it; keeping the same content again mends it."""
    file = kept(store, "text")
    for damage in (lambda: file.write_text("tex!"), file.unlink):
        file.chmod(0o644)
        damage()
        with pytest.raises(receipts.ReceiptError, match="dvc repro --force -s some_stage"):
            receipts.locate("receipts/a.json")
        kept(store, "text")
