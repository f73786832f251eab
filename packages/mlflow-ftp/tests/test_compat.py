"""What is used of pyftpdlib beyond its public interface is as `compat.py` expects it."""

from __future__ import annotations

import inspect

from pyftpdlib.handlers import DTPHandler
from pyftpdlib.handlers.ftps.ssl import SSLConnectionMixin


def test_private_names_of_pyftpdlib_exist():
    """The names in `compat.py` beyond pyftpdlib's documentation are still in use."""
    lost = [name for name in ("_error",) if f"self.{name}" not in inspect.getsource(SSLConnectionMixin)]
    lost += [
        name
        for name in ("_closed", "_fileno", "_initialized", "_resp")
        if f"self.{name}" not in inspect.getsource(inspect.getmodule(DTPHandler))
    ]
    assert not lost, f"pyftpdlib has lost {lost}: see mlflow_ftp.compat"
    wraps = "raise _FileReadWriteError(err) from err" in inspect.getsource(DTPHandler.handle_read)
    assert wraps, "pyftpdlib wraps errors of the disk in another way: see mlflow_ftp.compat"
