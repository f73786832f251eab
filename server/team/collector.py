"""Collect log files into SQLite with full-text search: `python collector.py FOLDER DATABASE`.

The key of a line is its file and its offset, so a line lands once, however often it is read. A file is known by its
inode, which stays when it is renamed, and by the bytes before the position, which change when it is truncated. A new
file with these bytes and a name that begins with the log's is the copy that was made before the log was truncated.
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

BATCH_BYTES = 4_000_000  # a longer line is cut
TAIL_BYTES = 1000  # before a position, by which a file is known again
# What a compressed file begins with: gzip, compress, bzip2, xz, zstd, lz4, lzip, zip, 7-Zip.
COMPRESSED = (
    b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"LZIP", b"PK\x03\x04",
    b"7z\xbc\xaf",
)  # fmt: skip
FIELDS = ("time", "level", "service", "message", "traceback", "run_id", "stage", "logger", "host")
POSTGRES = {"timestamp": "time", "error_severity": "level", "backend_type": "logger"}  # its names for ours
USED = "SELECT (c.page_count - f.freelist_count) * s.page_size FROM pragma_page_count c, pragma_freelist_count f, pragma_page_size s"  # noqa: E501

logger = logging.getLogger("collector")
warn_once = functools.cache(logger.warning)  # each round meets the same files


def open_database(path: Path) -> sqlite_utils.Database:
    """Return the database, with its tables made."""
    database = sqlite_utils.Database(path)
    database.enable_wal()  # readers do not wait for the collector
    columns = {"file": str, "offset": int} | dict.fromkeys(FIELDS, str)
    lines = database["lines"].create(columns, pk=("file", "offset"), if_not_exists=True)
    for name in ("time", "level", "service", "run_id"):
        lines.create_index([name], if_not_exists=True)
    if not lines.detect_fts():
        lines.enable_fts(["message", "traceback"], create_triggers=True)
    # For readers; the full-text index names rows of `lines`.
    database.create_view("log", f"SELECT {', '.join(FIELDS)}, rowid FROM lines", replace=True)  # noqa: S608
    columns = {"file": str, "name": str, "position": int, "inode": str, "tail": bytes}
    database["files"].create(columns, pk="file", if_not_exists=True)
    return database


def parse(line: bytes, name: str) -> dict[str, str]:
    """Return the fields of a line; the message is the text if it is no JSON, or JSON that cannot be read or stored."""
    text = line.decode(errors="replace").rstrip("\r\n")
    service = name.split(".")[0].split("-")[0]
    fields = {"time": str(datetime.now(UTC)), "level": "INFO", "service": service, "message": text}
    try:
        fields |= {POSTGRES.get(key, key): value for key, value in json.loads(text).items() if value is not None}
        moment = datetime.fromisoformat(str(fields["time"]).replace(" UTC", "Z"))
        fields["time"] = moment.astimezone(UTC).isoformat(timespec="milliseconds")
        columns = {key: value if isinstance(value := fields.get(key, ""), str) else json.dumps(value) for key in FIELDS}
        "".join(columns.values()).encode()  # half a surrogate pair, which SQLite refuses, is a ValueError
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return parse(json.dumps({"message": text}).encode(), name)
    return columns


def open_log(path: Path) -> io.FileIO:
    """Open a plain file; a link, which may lead out of the folder, and a pipe, which may never end, raise OSError."""
    return io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def read_tail(log: io.FileIO, position: int) -> bytes:
    """Return the last bytes before a position."""
    size = min(position, TAIL_BYTES)
    return os.pread(log.fileno(), size, position - size)


def is_being_copied(log: io.FileIO, path: Path) -> bool:
    """Tell whether the log after which a file is named holds the same: it does until it is truncated."""
    size = os.fstat(log.fileno()).st_size
    for other in path.parent.iterdir():
        if path.name.startswith(other.name) and path != other:
            with contextlib.suppress(OSError), open_log(other) as original:
                if read_tail(log, size) == read_tail(original, size):
                    return True
    return False


def identify(log: io.FileIO, path: Path, database: sqlite_utils.Database) -> dict | None:
    """Return how far a file was read, under this name or an earlier one; None for a copy that is being made."""
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
    """Add the next whole lines of a file to the database; return how many."""
    with open_log(path) as log:
        if os.pread(log.fileno(), 8, 0).startswith(COMPRESSED):
            raise OSError(errno.EINVAL, "it is compressed; its lines are collected before, with delaycompress")
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
        with database.atomic():  # the lines and the position, or neither
            database["lines"].insert_all(rows, ignore=True)
            database["files"].upsert(record)
    return len(rows)


def forget(database: sqlite_utils.Database, days: float, megabytes: float) -> None:
    """Delete lines older than ``days``, and the oldest tenth if the database is larger than ``megabytes``."""
    # No VACUUM: it would renumber the rows that the full-text index names. Free pages are used again.
    database["lines"].delete_where("time < ?", [(datetime.now(UTC) - timedelta(days=days)).isoformat()])
    if next(database.query(f"SELECT ({USED}) used"))["used"] > megabytes * 1e6:
        tenth = database["lines"].count // 10 + 1
        database["lines"].delete_where("rowid IN (SELECT rowid FROM lines ORDER BY time LIMIT ?)", [tenth])


def collect(folder: Path, database: sqlite_utils.Database, days: float, megabytes: float) -> int:
    """Read each file of the folder once, at most BATCH_BYTES of it; return how many lines came."""
    count = 0
    for path in sorted(folder.glob("[!.]*.*")):
        try:
            count += read(path, database)
        except FileNotFoundError:  # renamed meanwhile: read in the next round
            continue
        except OSError as error:
            warn_once("not collected: %r: %s", path.name, error.strerror)
    forget(database, days, megabytes)
    return count


def main() -> None:
    """Collect until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the log files are")
    parser.add_argument("database", type=Path, help="the SQLite file")
    parser.add_argument("--days", type=float, default=30, help="delete older lines (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=1000, help="largest database (%(default)s)")
    options = parser.parse_args()
    logging.config.dictConfig(yaml.safe_load(Path(__file__).with_name("logging.yaml").read_text(encoding="utf-8")))
    database = open_database(options.database)
    logger.info("collecting %s into %s", options.folder, options.database)
    while True:
        if not collect(options.folder, database, options.days, options.megabytes):
            options.database.with_name("alive").touch()  # for the health check
            time.sleep(1)


if __name__ == "__main__":
    main()
