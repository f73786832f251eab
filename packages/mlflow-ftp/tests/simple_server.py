"""An FTP server that lacks what older servers lack: `simple_server.py PORT FOLDER USER PASSWORD LACKS...`.

LACKS are commands that it does not know, and: `options` (LIST and NLST take `-a` for a name), `no-such` (the answer is
then an empty list), `hidden` (names that begin with a dot are not listed), `paths` (NLST has whole paths), `odd` (LIST
has lines of its own), `windows` (LIST as on Windows), `files` (550 for an empty folder), `names` (no lists at all).
"""

from __future__ import annotations

import re
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

port, folder, user, password, *lacks = sys.argv[1:]


class Files(AbstractedFS):
    """The lists of the server."""

    def listdir(self, path):
        """Leave out hidden names."""
        return [name for name in super().listdir(path) if "hidden" not in lacks or name[0] != "."]

    def format_list(self, basedir, listing, ignore_err=True):
        """Return the lines of LIST in the server's own form."""
        for line in super().format_list(basedir, listing, ignore_err):
            words = line.decode().rstrip("\r\n").split(maxsplit=7)
            name = line.decode().rstrip("\r\n")[-len(words[-1]) :]
            mode, size = words[0], words[4]
            name = re.sub(r"^\S+ ", "", words[7], count=1)
            if "odd" in lacks:
                yield f"{name}|{size}\r\n".encode()
            elif "windows" in lacks:
                yield f"11-26-26  09:00AM {'<DIR>         ' if mode[0] == 'd' else size:>21} {name}\r\n".encode()
            else:
                yield line


class Handler(FTPHandler):
    """The commands of the server."""

    abstracted_fs = Files
    proto_cmds = {name: rules for name, rules in FTPHandler.proto_cmds.items() if name not in lacks}  # noqa: RUF012

    def pre_process_command(self, line, cmd, arg):
        """Take options for names."""
        if cmd in ("LIST", "NLST") and arg.startswith("-") and "options" in lacks:
            if "no-such" in lacks:
                self.push_dtp_data(b"", cmd=cmd)
            else:
                self.respond(f"550 {arg}: no such file or directory.")
        elif cmd in ("LIST", "NLST") and "files" in lacks and not self.fs.listdir(self.fs.ftp2fs(self.fs.cwd)):
            self.respond("550 No files found.")
        elif cmd in ("LIST", "NLST") and "names" in lacks:
            self.respond("550 Permission denied.")
        else:
            super().pre_process_command(line, cmd, arg)

    def ftp_NLST(self, path):
        """List whole paths."""
        if "paths" not in lacks:
            return super().ftp_NLST(path)
        cwd = self.fs.cwd.rstrip("/")
        lines = "".join(f"{cwd}/{name}\r\n" for name in self.fs.listdir(path))
        self.push_dtp_data(lines.encode(), cmd="NLST")
        return path


Handler.authorizer = DummyAuthorizer()
Handler.authorizer.add_user(user, password, folder, perm="elradfmwMT")
FTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
