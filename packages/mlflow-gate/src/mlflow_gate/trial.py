"""Fetch, load and try a model: within a time limit, and whatever its code raises."""

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
from mlflow_gate.server import is_absent, outage


class ModelGone(ModelError):
    """The files of a model do not exist."""


def within(seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns, or raise what it raises; it runs in a thread of its own.

    Raises ModelError when the function has not returned after so many seconds (its thread is left behind), or raised
    what is no Exception, such as SystemExit.
    """
    future, context = Future[Any](), contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call, *arguments))
        except BaseException as error:  # noqa: BLE001 - a model's own code may raise anything
            future.set_exception(error)

    threading.Thread(target=run, name="mlflow-gate model", daemon=True).start()
    if not wait([future], seconds).done:
        expected = f"an answer within {seconds:g} s; Registry(time_limit=...) allows more"
        raise ModelError("The model does not answer.", value=f"no answer after {seconds:g} s", expected=expected)
    error = future.exception()
    if error is None or isinstance(error, Exception):
        return future.result()
    raise ModelError("The model ends the process.", value=trouble_of(error)) from error


def load(model_uri: str, read: Callable[[Path], Any] | None, seconds: float) -> Any:
    """Load a model by ``read``, by default with `mlflow.pyfunc`, from files that stay as long as the model.

    Raises ModelGone when there are no files, ServerError when they cannot be read now, and what loading raises.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.pyfunc import load_model

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-gate-", ignore_cleanup_errors=True))
        try:
            files = Path(download_artifacts(model_uri, dst_path=folder))
        except Exception as error:
            if is_absent(error):
                raise ModelGone("The model does not exist.", value=f"{model_uri}: {error!s:.300}") from None
            raise outage(f"The files of {model_uri} cannot be read: nothing is decided", error) from error
        if not (files / "MLmodel").is_file():
            raise ModelGone("The model has no files.", value=model_uri, expected="a file MLmodel among its artifacts")
        model = within(seconds, read or (lambda path: load_model(str(path))), files)
        remove = stack.pop_all().close
    try:
        weakref.finalize(model, remove)
    except TypeError:  # such as a dictionary
        atexit.register(remove)
    return model


def trouble_of(error: BaseException) -> str:
    """Return in a line what went wrong with a model."""
    words = getattr(error, "what", None)
    return f"{words} {error.value}" if words and hasattr(error, "value") else f"{type(error).__name__}: {error!s:.300}"
