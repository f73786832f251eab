"""An FTP server without the features that older servers lack: `simple_server.py PORT FOLDER USER PASSWORD LACKS...`.

LACKS are commands that it does not know, and: `options` (LIST and NLST take `-a` for a name), `no-such` (the answer is
then an empty list), `hidden` (names that begin with a dot are not listed), `paths` (NLST has whole paths), `odd` (LIST
has lines of its own), `windows` (LIST as on Windows), `files` (550 for an empty folder), `names` (no lists at all),
`logins` (more than three, in ProFTPD's words), `dots` (names that begin with a dot),
`421` and `530` (each fiftieth command ends the session with this answer), `utf-8` (the greeting is Latin-1),
`sync` (one command at a time), `replace` (replaces no file), `rename` (renames no hidden file),
`scan` (renames no file with a virus), `quota` (makes no folder).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mlflow_ftp.compat import TransferHandler
from pyftpdlib.authorizers import AuthenticationFailed, DummyAuthorizer
from pyftpdlib.filesystems import AbstractedFS
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

port, folder, user, password, *lacks = sys.argv[1:]
inside = set()


class Authorizer(DummyAuthorizer):
    """The server's users."""

    def validate_authentication(self, username, password, handler):
        """Reject a fourth login."""
        super().validate_authentication(username, password, handler)
        if "logins" in lacks and len(inside) >= 3:
            raise AuthenticationFailed("Sorry, the maximum number of clients (3) for this user are already connected.")
        inside.add(handler)


class Files(AbstractedFS):
    """The server's file system and listings."""

    def listdir(self, path):
        """Leave out hidden names."""
        return [name for name in super().listdir(path) if "hidden" not in lacks or name[0] != "."]

    def format_list(self, basedir, listing, ignore_err=True):
        """Return the lines of LIST in the server's format."""
        for line in super().format_list(basedir, listing, ignore_err):
            words = line.decode().rstrip("\r\n").split(maxsplit=7)
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
    unicode_errors = "surrogateescape"
    banner = "Gr\udcfc\udcdfe" if "utf-8" in lacks else "Ready."
    auth_failed_timeout = 0.1
    dtp_handler, _prot = TransferHandler, False  # pyftpdlib's may end a transfer when another command is rejected
    commands = 0
    proto_cmds = {name: rules for name, rules in FTPHandler.proto_cmds.items() if name not in lacks}  # noqa: RUF012

    def push(self, data):
        """Send a reply, with the bytes of names that are not UTF-8."""
        super(FTPHandler, self).push(data.encode(errors="surrogateescape"))

    def on_disconnect(self):
        """Free a login."""
        inside.discard(self)

    def found_terminator(self):
        """Execute a command and discard those received with it."""
        super().found_terminator()
        if "sync" in lacks:
            self.ac_in_buffer = b""

    def pre_process_command(self, line, cmd, arg):
        """Treat options as names, reject commands, and end sessions."""
        self.commands += 1
        if {"421", "530"} & set(lacks) and self.commands % 50 == 0:
            self.respond(f"{lacks[0]} The session has ended.")
            self.flush_account()
        elif "dots" in lacks and cmd in ("STOR", "MKD") and "/." in arg:
            self.respond("553 Prohibited file name.")
        elif "quota" in lacks and cmd == "MKD":
            self.respond("552 Quota of files exceeded.")
        elif "rename" in lacks and cmd == "RNFR" and "/." in arg:
            self.respond("550 Prohibited file name.")
        elif "replace" in lacks and cmd == "RNTO" and os.path.lexists(self.fs.ftp2fs(arg)):
            self.respond("550 Cannot create a file when that file already exists.")
        elif "scan" in lacks and cmd == "RNTO" and b"virus" in Path(self._rnfr).read_bytes():
            self.respond("550 Virus.")
        elif cmd in ("LIST", "NLST") and arg.startswith("-") and "options" in lacks:
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


Handler.authorizer = Authorizer()
Handler.authorizer.add_user(user, password, folder, perm="elradfmwMT")
server = FTPServer(("127.0.0.1", int(port)), Handler)
server.serve_forever()
