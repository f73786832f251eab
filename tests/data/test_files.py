"""Files are written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from workshop.data.files import write_whole
from workshop.errors import DataError


def test_write_whole_replaces_a_file_and_makes_its_folder(tmp_path):
    """The content is there whole, folders included, and no temporary file stays."""
    path = tmp_path / "new" / "file.csv"
    write_whole(path, b"old")
    assert write_whole(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_write_whole_tells_a_folder_that_cannot_be_written(tmp_path):
    """A folder that cannot be made gives a DataError with the file's name and what to do."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not be written") as caught:
        write_whole(tmp_path / "file" / "germany.csv", b"x")
    assert "germany.csv" in caught.value.what
    assert caught.value.next_step


def test_write_whole_keeps_the_old_file_when_the_disk_is_full(tmp_path):
    """A write that the system refuses half-way leaves the old content and no other file."""
    path = tmp_path / "germany.csv"
    path.write_bytes(b"old")
    # A limit on file size makes the system refuse a write as a full disk does, without filling one.
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        from workshop.data.files import write_whole
        from workshop.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_whole(Path({str(path)!r}), b"x" * 5000)
        except DataError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "germany.csv could not be written" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
