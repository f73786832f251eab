"""Collect log files into SQLite with full-text search: `python collector.py FOLDER DATABASE`.

The key of a line is its file and its offset; a file is known by the digest of its first line. So a line lands once,
however often it is read and however its file is renamed meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import logging.config
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlite_utils
import yaml

BATCH_BYTES = 4_000_000
FIELDS = ("time", "level", "service", "message", "traceback", "run_id", "stage", "logger", "host")
POSTGRES = {"timestamp": "time", "error_severity": "level", "backend_type": "logger"}  # its names for ours
USED = "SELECT (c.page_count - f.freelist_count) * s.page_size FROM pragma_page_count c, pragma_freelist_count f, pragma_page_size s"  # noqa: E501

logger = logging.getLogger("collector")


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
    database["files"].create({"file": str, "name": str, "position": int}, pk="file", if_not_exists=True)
    return database


def parse(line: bytes, name: str) -> dict[str, str]:
    """Return the fields of a line; one that is no JSON is a message of the service after which the file is named."""
    fields = {"time": datetime.now(UTC).isoformat(), "level": "INFO", "service": name.split(".")[0].split("-")[0]}
    text = line.decode(errors="replace").rstrip("\r\n")
    try:
        fields |= {POSTGRES.get(key, key): value for key, value in json.loads(text).items() if value is not None}
    except (ValueError, AttributeError, RecursionError):
        fields["message"] = text
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(str(fields["time"]).replace(" UTC", "Z"))
        fields["time"] = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return {key: value if isinstance(value := fields.get(key, ""), str) else json.dumps(value) for key in FIELDS}


def read(path: Path, database: sqlite_utils.Database) -> int:
    """Add the next whole lines of a file to the database; return how many."""
    with path.open("rb") as file:
        first = file.readline(BATCH_BYTES)
        if not first.endswith(b"\n"):
            return 0
        key, rows = hashlib.sha256(first).hexdigest()[:16], []
        position = next((row["position"] for row in database["files"].rows_where("file = ?", [key])), 0)
        file.seek(position)
        for line in file.readlines(BATCH_BYTES):
            if line.endswith(b"\n"):
                rows.append({"file": key, "offset": position} | parse(line, path.name))
                position += len(line)
    if rows:
        with database.atomic():  # the lines and the position, or neither
            database["lines"].insert_all(rows, ignore=True)
            database["files"].upsert({"file": key, "name": path.name, "position": position})
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
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile: read in the next round
            count += read(path, database)
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
