"""A plain server of files with ranges, as any host is, which writes down what is asked of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Plain(ThreadingHTTPServer):
    """Of one folder. asked: (path, bytes sent) of each request."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Plain
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.server.folder / (urlsplit(self.path).path.lstrip("/") or "index.html")
        if not path.is_file():
            self.server.asked.append((self.path, 0))
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is not None:
            whole, status = len(data), 206
            data = data[int(found[1]) : int(found[2]) + 1]
        self.send_response(status)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Length", str(len(data)))
        if found is not None:
            self.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{whole}")
        self.end_headers()
        self.wfile.write(data)
        self.server.asked.append((self.path, len(data)))

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def plainly_served(folder: Path) -> Iterator[Plain]:
    """The folder, served on loopback."""
    with Plain(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
