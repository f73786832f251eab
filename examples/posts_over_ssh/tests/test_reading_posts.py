"""Reading posts row by row, and the built-in posts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import docstrings
import posts
import pytest
import stackoverflow

ROW = '  <row Id="{}" PostTypeId="{}" Title="A title" Body="&lt;p&gt;1 &amp;lt; 2&#xA;\tmore&lt;/p&gt;" Tags="{}" />\n'
ROWS = ROW.format(1, 1, "&lt;python&gt;&lt;list&gt;") + ROW.format(2, 1, "|python-3.x|c|")
DUMP = f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{ROWS}</posts>\n'


def convert(folder: Path, text: str | bytes) -> tuple[dict, str]:
    """Return the counts and the TSV text of a dump."""
    xml, tsv = folder / "Posts.xml", folder / "posts.tsv"
    xml.write_bytes(text if isinstance(text, bytes) else text.encode())
    return dict(posts.write_tsv(xml, tsv, "python")), tsv.read_text()


def test_question_becomes_a_line(tmp_path):
    """Tags of old and new dumps, markup and white space are handled; tags match as a whole."""
    counts, table = convert(tmp_path, DUMP)
    assert counts == {"questions": 2, "positive": 1, "answers": 0, "broken": 0}
    assert table == "id\tlabel\ttext\n1\t1\tA title 1 < 2 more\n2\t0\tA title 1 < 2 more\n"


@pytest.mark.parametrize(
    "row",
    ['<row Id="3" Title="a & b" />\n', '<row Id="3" PostTypeId="1" />\n', "<row\n", '<user Id="3" />\n', "text\n",
     ROW.format("x", 1, "c"), ROW.format(3, 1, "&unknown;"), b'<row Id="3" Title="\xff" />\n', "<row Id='3'\0 />\n"],
)  # fmt: skip
def test_broken_row_is_counted_and_printed(tmp_path, capsys, row):
    """A broken row is skipped, and the rows after it are read; answers are not questions."""
    row = row if isinstance(row, bytes) else row.encode()
    counts, _ = convert(tmp_path, b"<posts>\n" + row + (ROW.format(4, 2, "") + ROWS).encode() + b"</posts>")
    assert counts == {"questions": 2, "positive": 1, "answers": 1, "broken": 1}
    assert "line 2 is broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "start",
    ['<!DOCTYPE posts [<!ENTITY a "b">]>\n', "<!doctype posts\n[\n", '<!DOCTYPE a SYSTEM "file:///x"><row />\n',
     '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>\n'.encode("utf-16")],
)  # fmt: skip
def test_document_type_is_an_error(tmp_path, start):
    """No entity is ever declared, whatever the rows contain."""
    start = start if isinstance(start, bytes) else start.encode()
    with pytest.raises(posts.PostsError, match="DOCTYPE and ENTITY"):
        convert(tmp_path, start + DUMP.encode())


def test_memory_is_constant(tmp_path):
    """A dump of 10 MB takes less than 1 MB of memory; a file with a single line is an error after 16 MB."""
    xml = tmp_path / "large.xml"
    with xml.open("w") as file:
        file.writelines(ROWS.replace("A title", "many words " * 200) for _ in range(2300))
    assert xml.stat().st_size > 10e6
    tracemalloc.start()
    assert posts.write_tsv(xml, tmp_path / "tsv", "python")["questions"] == 4600
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    with pytest.raises(posts.PostsError, match="line 1"):
        convert(tmp_path, b" " * 20_000_000)


def test_split_loses_no_line(tmp_path):
    """Each line is in one of the two parts, reproducibly with the same seed, and both can be read."""
    convert(tmp_path, DUMP.replace("</posts>", "".join(ROW.format(n, 1, "c") for n in range(3, 1000)) + "</posts>"))
    for name in ("first", "again"):
        posts.split(tmp_path / "posts.tsv", tmp_path / f"{name}-train", tmp_path / f"{name}-test", 0.2, 1)
    train, test = posts.read(tmp_path / "first-train"), posts.read(tmp_path / "first-test")
    assert sorted([*train.id, *test.id]) == list(range(1, 1000))
    assert 150 < len(test) < 250
    assert (tmp_path / "first-test").read_bytes() == (tmp_path / "again-test").read_bytes()


def test_builtin_posts_are_reproducible(tmp_path):
    """Two processes write the same bytes, without broken rows; two libraries are enough."""
    code = "import docstrings, pathlib, sys; docstrings.LIBRARIES = ('dask', 'pyarrow'); "
    code += "docstrings.write_xml(pathlib.Path(sys.argv[1]))"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(docstrings.__file__).parent)}
        subprocess.run([sys.executable, "-c", code, tmp_path / seed], env=environment, check=True)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    counts = posts.write_tsv(tmp_path / "1", tmp_path / "tsv", "pyarrow")
    assert counts["questions"] > 500
    assert counts["broken"] == 0


def test_download_is_verified(tmp_path):
    """Archive and posts are compared with their md5, and only Posts.xml is extracted."""
    (tmp_path / "Posts.xml").write_text(DUMP)
    with tarfile.open(tmp_path / "Posts.xml.tgz", "w:gz") as archive:
        archive.add(tmp_path / "Posts.xml", "Posts.xml")
    md5 = [hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in ("Posts.xml.tgz", "Posts.xml")]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/Posts.xml.tgz"
        stackoverflow.write_xml(tmp_path / "download", address, *md5)
        for wrong in ([md5[1], md5[1]], [md5[0], md5[0]]):
            with pytest.raises(ValueError, match=r"md5|hash"):
                stackoverflow.write_xml(tmp_path / "wrong", address, *wrong)
        server.shutdown()
    assert (tmp_path / "download").read_text() == DUMP
