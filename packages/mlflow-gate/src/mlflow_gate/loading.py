"""Download a model and load it within a time limit; handle anything that its code raises."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from mlflow_gate.errors import ModelError
from mlflow_gate.server import is_not_found, outage


class ModelMissing(ModelError):
    """The model's files do not exist."""


def call_within(seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in its own thread, with a time limit; return its value or raise its exception.

    Raises ModelError if the function does not return in time (its thread keeps running), or raises a BaseException
    such as SystemExit.
    """
    future, context = Future[Any](), contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call, *arguments))
        except BaseException as error:  # noqa: BLE001 - a model's own code may raise anything
            future.set_exception(error)

    threading.Thread(target=run, name="mlflow-gate model", daemon=True).start()
    if not wait([future], seconds).done:
        expected = f"a result within {seconds:g} s; Registry(time_limit=...) changes this limit"
        raise ModelError(
            "The model did not respond in time.", value=f"no result after {seconds:g} s", expected=expected
        )
    error = future.exception()
    if error is None or isinstance(error, Exception):
        return future.result()
    raise ModelError("The model tried to end the process.", value=describe_error(error)) from error


def load(model_uri: str, read: Callable[[Path], Any] | None, seconds: float) -> Any:
    """Load a model with ``read`` (default: `mlflow.pyfunc`); keep the downloaded files as long as the object exists.

    Raises ModelMissing if the files do not exist, ServerError if they cannot be read now, and any error of ``read``.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.pyfunc import load_model

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-gate-", ignore_cleanup_errors=True))
        try:
            files = Path(download_artifacts(model_uri, dst_path=folder))
        except Exception as error:
            if is_not_found(error):
                raise ModelMissing("The model does not exist.", value=f"{model_uri}: {error!s:.300}") from None
            raise outage(f"The files of {model_uri} cannot be read: no decision was made", error) from error
        if not (files / "MLmodel").is_file():
            raise ModelMissing(
                "The model has no files.", value=model_uri, expected="a file named MLmodel among the artifacts"
            )
        model = call_within(seconds, read or (lambda path: load_model(str(path))), files)
        remove = stack.pop_all().close
    try:
        weakref.finalize(model, remove)
    except TypeError:  # an object that cannot be weakly referenced, such as a dict
        atexit.register(remove)
    return model


def describe_error(error: BaseException) -> str:
    """Return a short description of an error from loading or evaluating a model."""
    what = getattr(error, "what", None)
    return f"{what} {error.value}" if what and hasattr(error, "value") else f"{type(error).__name__}: {error!s:.300}"
