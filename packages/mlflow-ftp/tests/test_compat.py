"""pyftpdlib's private names are as `compat.py` expects them."""

from __future__ import annotations

import inspect

from pyftpdlib.handlers import DTPHandler
from pyftpdlib.handlers.ftps.ssl import SSLConnectionMixin


def test_private_names_of_pyftpdlib_exist():
    """The undocumented names in `compat.py` are still used by pyftpdlib."""
    missing = [name for name in ("_error",) if f"self.{name}" not in inspect.getsource(SSLConnectionMixin)]
    missing += [
        name
        for name in ("_closed", "_fileno", "_initialized", "_resp")
        if f"self.{name}" not in inspect.getsource(inspect.getmodule(DTPHandler))
    ]
    assert not missing, f"pyftpdlib has lost {missing}: see mlflow_ftp.compat"
    wraps = "raise _FileReadWriteError(err) from err" in inspect.getsource(DTPHandler.handle_read)
    assert wraps, "pyftpdlib wraps errors of the disk in another way: see mlflow_ftp.compat"
