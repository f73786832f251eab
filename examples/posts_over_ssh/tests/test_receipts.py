"""Receipts: kept files, lookups, and the state after failures."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import receipts


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """An empty store; the current folder is another empty folder."""
    for name in ("store", "laptop"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "laptop")
    return tmp_path / "store"


def keep_text(store: Path, text: str, name: str = "a") -> Path:
    """Keep a text file and return its path."""
    with receipts.keep(f"receipts/{name}.json", store, "some_stage") as file:
        file.write_text(text)
    return receipts.locate(f"receipts/{name}.json", store)


def test_same_content_is_stored_once(store):
    """A file is stored under its md5, read-only; its receipt has neither time nor user."""
    file = keep_text(store, "text\n")
    assert file == keep_text(store, "text\n", "b") == store / "e1" / "cbb0c3879af8347246f12c559a86b5"
    assert [path for path in store.rglob("*") if path.is_file()] == [file]
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o7777) == (0o444, 0o2775)
    content = json.loads(Path("receipts/a.json").read_text())
    assert content == {"path": str(file), "md5": "e1cbb0c3879af8347246f12c559a86b5", "size": 5, "stage": "some_stage"}
    assert Path("receipts/a.json").read_text() == Path("receipts/b.json").read_text()


def test_unfinished_file_of_a_killed_process_is_removed(store):
    """The next `keep` removes the unfinished file of a killed process, and not that of a living one."""
    code = "import receipts, sys\nwith receipts.keep('r.json', sys.argv[1], 's'): print(flush=True); input()"
    folder = Path(receipts.__file__).parent
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); exec({code!r})", store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        keep_text(store, "text")
        assert len(list(store.glob(".unfinished*"))) == 1
        process.send_signal(signal.SIGKILL)
    keep_text(store, "text")
    assert list(store.glob(".unfinished*")) == []


def test_damaged_file_is_detected_and_replaced(store):
    """The error names the stage that wrote it; keeping the same content again repairs it."""
    file = keep_text(store, "text")
    for damage in (lambda: file.write_text("tex!"), file.unlink):
        file.chmod(0o644)
        damage()
        with pytest.raises(receipts.ReceiptError, match="dvc repro --force -s some_stage"):
            receipts.locate("receipts/a.json", store)
        keep_text(store, "text")


CHANGES = {
    "path": ["/etc/passwd", "../../etc/passwd", "", None, 1, ["a"]],
    "md5": ["", "../" * 10 + "etc/passwd", "E1CBB0C3879AF8347246F12C559A86B5", 5, None, ["a"] * 32],
    "stage": ["", "s; rm -r ~", None, {}],
    "size": ["5", None, 6],
}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "7", "{}", "[" * 100_000, "\xff", "missing"])
def test_invalid_receipt_is_an_error(store, text):
    """The ReceiptError names the file and the next step."""
    if text != "missing":
        Path("receipt.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(receipts.ReceiptError, match=r"receipt\.json is not a receipt for a file in .*\n  next: rm"):
        receipts.locate("receipt.json", store)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in CHANGES for value in CHANGES[field]])
def test_receipt_with_another_value_is_an_error(store, field, value):
    """A receipt resolves only to the file in the store with its md5."""
    keep_text(store, "text\n")
    content = json.loads(Path("receipts/a.json").read_text())
    for changed in (content | {field: value}, {key: content[key] for key in content if key != field}):
        Path("receipts/a.json").write_text(json.dumps(changed))
        with pytest.raises(receipts.ReceiptError, match=r"next: (rm receipts/a\.json|dvc repro)"):
            receipts.locate("receipts/a.json", store)


@pytest.mark.parametrize("place", ["store", "outside"])
@pytest.mark.parametrize("path", ["/etc/passwd", "store/../outside"])
def test_receipt_of_a_file_outside_the_store_is_an_error(store, path, place):
    """The md5 of a file outside matches, by its path or by a link in the store: still an error."""
    (store.parent / "outside").write_text("outside\n")
    file = store.parent / path
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    link = store / md5[:2] / md5[2:]
    if place == "store":
        link.parent.mkdir()
        link.symlink_to(file.resolve())
    content = {"path": str(link if place == "store" else file), "md5": md5, "size": file.stat().st_size, "stage": "s"}
    Path("receipt.json").write_text(json.dumps(content))
    with pytest.raises(receipts.ReceiptError):
        receipts.locate("receipt.json", store)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_kept_file_that_is_not_regular_is_an_error(store, kind):
    """A pipe, an endless device or a folder in place of a kept file, or a link in place of its folder, is not read."""
    file, moved = keep_text(store, "text\n"), store.parent / "moved"
    file.parent.rename(moved)
    if kind == "link":
        file.parent.symlink_to(moved)
    else:
        make = {"pipe": lambda: os.mkfifo(file), "device": lambda: file.symlink_to("/dev/zero"), "folder": file.mkdir}
        file.parent.mkdir()
        make[kind]()
    with pytest.raises(receipts.ReceiptError, match=r"cannot be read|is a link"):
        receipts.locate("receipts/a.json", store)
