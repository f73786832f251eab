"""A web server with faults on demand: the standard library's, in a thread, with ranges."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Serves ``files`` by path. Each request takes the next of ``faults``, and is noted in ``requests``.

    A fault is a status, such as 500; ("cut", n): n bytes of what is due, then the line is cut; ("slow", seconds): a
    pause before the second half; ("other", bytes): another content; ("silent", seconds): no answer for so long;
    ("from", n): a part that begins somewhere else than asked for.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list = []
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        """End the server."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request, with the next fault if there is one."""
        asked = request.headers.get("Range")
        self.requests.append((request.path, asked))
        fault = self.faults.pop(0) if self.faults else None
        kind, much = fault if isinstance(fault, tuple) else (None, None)
        # A request through a proxy names the whole address.
        content = much if kind == "other" else self.files.get(re.sub(r"^http://[^/]+", "", request.path))
        if kind == "silent":
            time.sleep(much)
        if isinstance(fault, int) or content is None:
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        if asked and self.ranges and start >= len(content):
            request.send_error(416)
            return
        start = much if kind == "from" else start
        due = content[start:]
        request.send_response(206 if asked and self.ranges else 200)
        request.send_header("Content-Length", str(len(due)))
        if asked and self.ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        half = len(due) // 2
        try:
            if kind == "cut":
                request.wfile.write(due[:much])
                request.wfile.flush()
                request.connection.close()
                request.close_connection = True
                return
            request.wfile.write(due[:half])
            request.wfile.flush()
            if kind == "slow":
                time.sleep(much)
            request.wfile.write(due[half:])
        except OSError:
            pass  # the client went away
