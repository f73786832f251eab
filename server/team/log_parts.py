"""Filter and handlers for `logging.yaml`: the context of each record, and the optional outputs."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from pathlib import Path

RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")


class Context(logging.Filter):
    """Logging filter that adds the service, MLflow run, DVC stage and host to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; drop records of health checks, which arrive every ten seconds."""
        mlflow = sys.modules.get("mlflow")
        run = mlflow.active_run() if hasattr(mlflow, "active_run") else None
        # A server has no active run; its messages may contain a run's id.
        match = RUN_ID.search(message := record.getMessage())
        record.run_id = run.info.run_id if run else os.environ.get("MLFLOW_RUN_ID") or (match[0] if match else "")
        record.stage = os.environ.get("DVC_STAGE", "")
        record.service = os.environ.get("LOG_SERVICE") or Path(sys.argv[0]).stem
        record.host = socket.gethostname()
        return '"GET /health ' not in message


def make_file_handler(megabytes: int, files: int) -> logging.Handler:
    """Return a rotating handler for LOG_FOLDER/LOG_SERVICE.jsonl, safe for several processes of a service."""
    if not (folder := os.environ.get("LOG_FOLDER")):
        return logging.NullHandler()
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    Path(folder).mkdir(parents=True, exist_ok=True)
    file = Path(folder) / f"{os.environ.get('LOG_SERVICE') or Path(sys.argv[0]).stem}.jsonl"
    return ConcurrentRotatingFileHandler(file, maxBytes=megabytes * 1_000_000, backupCount=files, encoding="utf-8")


def make_forward_handler() -> logging.Handler:
    """Return a handler that sends records to LOG_FORWARD in the background, buffering them if the receiver is down."""
    if not (address := os.environ.get("LOG_FORWARD")):
        return logging.NullHandler()
    from fluent.asynchandler import FluentHandler
    from fluent.handler import FluentRecordFormatter

    host, port = address.rsplit(":", 1)
    handler = FluentHandler("team", host=host, port=int(port), nanosecond_precision=True)
    fields = {name: f"%({name})s" for name in ("service", "run_id", "stage", "host")}
    fields |= {"level": "%(levelname)s", "logger": "%(name)s"}
    handler.setFormatter(FluentRecordFormatter(fields, format_json=False))  # the message includes the traceback
    return handler
