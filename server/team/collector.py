"""Collect log files into SQLite with full-text search: `python collector.py FOLDER DATABASE`.

A line's key is its file and offset, so a line is stored once, however often it is read. A file is identified by its
inode, which survives renaming, and by the bytes before the read position, which change on truncation. A new file with
the same bytes, whose name starts with the log's name, is the copy that was made before the log was truncated.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import hashlib
import io
import json
import logging
import logging.config
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlite_utils
import yaml

BATCH_BYTES = 4_000_000  # read from a file per round; a longer line is split
TAIL_BYTES = 1000  # bytes before the read position, which identify a file
# Magic bytes of gzip, compress, bzip2, xz, zstd, lz4, lzip, zip and 7-Zip.
COMPRESSED = (
    b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"LZIP", b"PK\x03\x04",
    b"7z\xbc\xaf",
)  # fmt: skip
FIELDS = ("time", "level", "service", "message", "traceback", "run_id", "stage", "logger", "host")
POSTGRES = {"timestamp": "time", "error_severity": "level", "backend_type": "logger"}  # PostgreSQL's field -> ours
USED_BYTES = "SELECT (c.page_count - f.freelist_count) * s.page_size FROM pragma_page_count c, pragma_freelist_count f, pragma_page_size s"  # noqa: E501

logger = logging.getLogger("collector")
warn_once = functools.cache(logger.warning)  # otherwise each round would repeat the warnings


def open_database(path: Path) -> sqlite_utils.Database:
    """Open the database and create missing tables."""
    database = sqlite_utils.Database(path)
    database.enable_wal()  # readers do not wait for the collector
    columns = {"file": str, "offset": int} | dict.fromkeys(FIELDS, str)
    lines = database["lines"].create(columns, pk=("file", "offset"), if_not_exists=True)
    for name in ("time", "level", "service", "run_id"):
        lines.create_index([name], if_not_exists=True)
    if not lines.detect_fts():
        lines.enable_fts(["message", "traceback"], create_triggers=True)
    # Readers query this view; its rowid is the key of the full-text index.
    database.create_view("log", f"SELECT {', '.join(FIELDS)}, rowid FROM lines", replace=True)  # noqa: S608
    columns = {"file": str, "name": str, "position": int, "inode": str, "tail": bytes}
    database["files"].create(columns, pk="file", if_not_exists=True)
    return database


def parse(line: bytes, name: str) -> dict[str, str]:
    """Return the fields of a line; if the line is not JSON that can be stored, its text becomes the message."""
    text = line.decode(errors="replace").rstrip("\r\n")
    service = name.split(".")[0].split("-")[0]
    fields = {"time": str(datetime.now(UTC)), "level": "INFO", "service": service, "message": text}
    try:
        fields |= {POSTGRES.get(key, key): value for key, value in json.loads(text).items() if value is not None}
        moment = datetime.fromisoformat(str(fields["time"]).replace(" UTC", "Z"))
        fields["time"] = moment.astimezone(UTC).isoformat(timespec="milliseconds")
        columns = {key: value if isinstance(value := fields.get(key, ""), str) else json.dumps(value) for key in FIELDS}
        "".join(columns.values()).encode()  # raises ValueError for a lone surrogate, which SQLite cannot store
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return parse(json.dumps({"message": text}).encode(), name)
    return columns


def open_log(path: Path) -> io.FileIO:
    """Open a file, without blocking on a named pipe; raise OSError for a symbolic link, which may leave the folder."""
    return io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def read_tail(log: io.FileIO, position: int) -> bytes:
    """Return up to TAIL_BYTES bytes before a position."""
    size = min(position, TAIL_BYTES)
    return os.pread(log.fileno(), size, position - size)


def is_being_copied(log: io.FileIO, path: Path) -> bool:
    """Return whether the file is logrotate's copy (copytruncate) of a log, and the log itself is not truncated yet."""
    size = os.fstat(log.fileno()).st_size
    for other in path.parent.iterdir():
        if path.name.startswith(other.name) and path != other:
            with contextlib.suppress(OSError), open_log(other) as original:
                if read_tail(log, size) == read_tail(original, size):
                    return True
    return False


def identify(log: io.FileIO, path: Path, database: sqlite_utils.Database) -> dict | None:
    """Return the file's record, even if the file was renamed, or a new record; None while the file is being copied."""
    files, inode = database["files"], str(os.fstat(log.fileno()).st_ino)
    for record in files.rows_where("inode = ?", [inode], order_by="position DESC"):
        if read_tail(log, record["position"]) == record["tail"]:
            return record
    if is_being_copied(log, path):
        return None
    name = os.fsencode(path.name).decode(errors="replace")
    for record in files.rows_where("substr(?, 1, length(name)) = name", [name], order_by="position DESC"):
        if read_tail(log, record["position"]) == record["tail"]:
            files.update(record["file"], {"name": name, "inode": inode})
            return files.get(record["file"])
    first = os.pread(log.fileno(), BATCH_BYTES, 0)
    key = hashlib.sha256(first[: first.find(b"\n") + 1] or first).hexdigest()[:16]
    while files.count_where("file = ?", [key]):
        key = hashlib.sha256(key.encode()).hexdigest()[:16]
    return {"file": key, "name": name, "position": 0, "inode": inode, "tail": b""}


def read(path: Path, database: sqlite_utils.Database) -> int:
    """Add the next complete lines of a file to the database; return their number."""
    with open_log(path) as log:
        if os.pread(log.fileno(), 8, 0).startswith(COMPRESSED):
            raise OSError(errno.EINVAL, "it is compressed; use delaycompress, so that its lines are collected first")
        if not (record := identify(log, path, database)):
            return 0
        content, rows = os.pread(log.fileno(), BATCH_BYTES, record["position"]), []
    if len(content) < BATCH_BYTES or b"\n" in content:
        content = content[: content.rfind(b"\n") + 1]
    for line in io.BytesIO(content):
        rows.append({"file": record["file"], "offset": record["position"]} | parse(line, record["name"]))
        record["position"] += len(line)
    if rows:
        record["tail"] = (record["tail"] + content)[-TAIL_BYTES:]
        with database.atomic():  # so that the read position always matches the stored lines
            database["lines"].insert_all(rows, ignore=True)
            database["files"].upsert(record)
    return len(rows)


def delete_old(database: sqlite_utils.Database, days: float, megabytes: float) -> None:
    """Delete lines older than ``days``; if the database still exceeds ``megabytes``, also the oldest 10 % left."""
    # No VACUUM: it would change the rowids of `lines`, the keys of the full-text index. SQLite reuses free pages.
    database["lines"].delete_where("time < ?", [(datetime.now(UTC) - timedelta(days=days)).isoformat()])
    if next(database.query(f"SELECT ({USED_BYTES}) used"))["used"] > megabytes * 1e6:
        tenth = database["lines"].count // 10 + 1
        database["lines"].delete_where("rowid IN (SELECT rowid FROM lines ORDER BY time LIMIT ?)", [tenth])


def collect(folder: Path, database: sqlite_utils.Database, days: float, megabytes: float) -> int:
    """Read at most BATCH_BYTES of each file of the folder; return the number of new lines."""
    count = 0
    for path in sorted(folder.glob("[!.]*.*")):
        try:
            count += read(path, database)
        except FileNotFoundError:  # the file was just renamed: read it in the next round
            continue
        except OSError as error:
            warn_once("not collected: %r: %s", path.name, error.strerror)
    delete_old(database, days, megabytes)
    return count


def main() -> None:
    """Collect until the process is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder with the log files")
    parser.add_argument("database", type=Path, help="the SQLite file")
    parser.add_argument("--days", type=float, default=30, help="how many days to keep a line (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=1000, help="maximum database size (default: %(default)s)")
    options = parser.parse_args()
    logging.config.dictConfig(yaml.safe_load(Path(__file__).with_name("logging.yaml").read_text(encoding="utf-8")))
    database = open_database(options.database)
    logger.info("collecting %s into %s", options.folder, options.database)
    while True:
        if not collect(options.folder, database, options.days, options.megabytes):
            options.database.with_name("alive").touch()  # the health check reads its modification time
            time.sleep(1)


if __name__ == "__main__":
    main()
