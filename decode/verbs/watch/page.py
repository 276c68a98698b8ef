"""Page: figures and picture of an acquisition in a browser of this machine."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self, final

from decode.pages import live_page
from decode.verbs.watch.figures import Update

__all__ = ["LivePage"]

HOST = "127.0.0.1"
"""no other machine sees the page"""
HISTORY = 2000
"""updates that the page draws"""


@final
class LivePage:
    """A page that refreshes itself, served from a thread; a context manager.

    Args:
        title: of the page.
        port: of this machine; 0 takes a free one.

    Raises:
        OSError: if another program has the port.
    """

    def __init__(self, title: str, *, port: int = 0) -> None:
        self._updates: deque[Update] = deque(maxlen=HISTORY)
        self._picture: Callable[[], bytes] = bytes
        content: dict[str, tuple[str, Callable[[], bytes]]] = {
            "/": ("text/html; charset=utf-8", live_page(title).encode),
            "/updates.json": ("application/json", self._json),
            "/picture.png": ("image/png", self._png),
        }

        @final
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = content.get(self.path.partition("?")[0])
                if found is None:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                kind, body = found[0], found[1]()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads a line a request."""

        try:
            self._server = ThreadingHTTPServer((HOST, port), Handler)
        except OSError as error:
            raise OSError(
                f"the port {port} of this machine is taken ({error.strerror}); choose another one "
                "with --port, or leave the page out with --no-page"
            ) from error
        self._server.daemon_threads = True
        self.address = f"http://{HOST}:{self._server.server_address[1]}/"
        """of the page"""
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def show(self, update: Update, picture: Callable[[], bytes]) -> None:
        """Take the next figures, and what draws the picture when somebody looks."""
        self._updates.append(update)
        self._picture = picture

    def _json(self) -> bytes:
        return json.dumps([update.as_dict() for update in list(self._updates)]).encode()

    def _png(self) -> bytes:
        return self._picture()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
