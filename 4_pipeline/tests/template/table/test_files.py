"""Atomic writing of files."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from forecast.terms.errors import DataError
from forecast.terms.files import write_atomically


def test_write_atomically_replaces_a_file_and_makes_its_folder(tmp_path):
    """The file is complete, its folder is created, and no temporary file stays; a file as parent folder is an error."""
    path = tmp_path / "new" / "file.csv"
    write_atomically(path, b"old")
    assert write_atomically(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(DataError, match=r"germany\.csv could not be written") as caught:
        write_atomically(path / "germany.csv", b"x")
    assert caught.value.next_step


def test_write_atomically_keeps_the_old_file_when_the_disk_is_full(tmp_path):
    """A write that fails half-way leaves the old content and no other file."""
    path = tmp_path / "germany.csv"
    path.write_bytes(b"old")
    # With a limit on the file size a write fails as on a full disk.
    script = textwrap.dedent(f"""
        import resource
        from pathlib import Path
        from forecast.terms.files import write_atomically
        from forecast.terms.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomically(Path({str(path)!r}), b"x" * 5000)
        except DataError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "germany.csv could not be written" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
