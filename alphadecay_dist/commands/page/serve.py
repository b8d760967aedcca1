"""Serves the page of runs that go on: on this machine alone, with new data as they come."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from alphadecay_dist.commands.page.html import as_json
from alphadecay_dist.commands.page.report import report_data, report_page
from alphadecay_dist.commands.page.run_data import FILES
from alphadecay_dist.errors import UserError

HOST = "127.0.0.1"


class PageServer(ThreadingHTTPServer):
    """Answers ``/`` with the page, and ``/data?after=TOKEN`` with its data where they are not those of TOKEN.

    Args:
        folders: output directories of the runs.
        port: of the loopback; 0 takes any that is free.

    Attributes:
        url: where the page is.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int) -> None:
        self.folders = folders
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise UserError(f"--port {port}: {reason}; choose another, or 0 for any that is free") from None
        self.url = f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away before it had its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def token(self) -> str:
        """Stands for the files as they are now."""
        stamps = [_stamp(folder / name) for folder in self.folders for name in FILES]
        return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)  # a name that leads here by a trick of a page elsewhere
        elif address.path == "/":
            self._page()
        elif address.path == "/data":
            self._data(parse_qs(address.query).get("after", [""])[0])
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _page(self) -> None:
        token = self.server.token()  # before the files are read: what comes between is told by the next
        try:
            self._answer("text/html", report_page(self.server.folders, token), token)
        except (UserError, OSError) as error:  # such as a run without a line yet
            self._answer("text/plain", f"{error}\n", token, refresh=True)

    def _data(self, after: str) -> None:
        token = self.server.token()
        if token == after:
            self.send_response(HTTPStatus.NO_CONTENT)
            self.end_headers()
            return
        try:
            self._answer("application/json", as_json(report_data(self.server.folders)), token)
        except (UserError, OSError) as error:
            self._answer("text/plain", str(error), token, HTTPStatus.SERVICE_UNAVAILABLE)

    def _answer(
        self, kind: str, text: str, token: str, status: HTTPStatus = HTTPStatus.OK, refresh: bool = False
    ) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Token", token)
        if refresh:
            self.send_header("Refresh", "2")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said of each request."""
