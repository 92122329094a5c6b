"""What the demo page's server accepts: requests of this page on this machine, of limited size.

gradio limits each file, but not how many files a request has, and takes uploads from any page that a browser shows.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

_LOCAL = {"127.0.0.1", "localhost", "::1"}
_READING = {"GET", "HEAD", "OPTIONS"}
_OVERHEAD = 1 << 20  # of a request around its file

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class RequestGuard:
    """ASGI middleware that refuses requests of other origins, and those that are larger than one upload.

    Args:
        app: the application that it protects.
        max_bytes: of a file; a request can have one such file.
    """

    def __init__(self, app: App, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes + _OVERHEAD

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = _foreign(headers, scope.get("method", ""))
        if refused is None and not headers.get("content-length", "0").isdecimal():
            refused = 400, "the length of the request is no number"
        if refused is None and int(headers.get("content-length", "0")) > self.max_bytes:
            refused = 413, f"a request can have one file of at most {self.max_bytes - _OVERHEAD:,} bytes"
        if refused is None:
            await self.app(scope, self._counted(receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, text = refused
            kind = (b"content-type", b"text/plain; charset=utf-8")
            await send({"type": "http.response.start", "status": status, "headers": [kind]})
            await send({"type": "http.response.body", "body": text.encode()})

    def _counted(self, receive: Receive) -> Receive:
        """Return `receive`, which ends a request of unknown length when it becomes too large."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self.max_bytes else {"type": "http.disconnect"}

        return counted


def _foreign(headers: dict[str, str], method: str) -> tuple[int, str] | None:
    """Return status and reason if a request comes by another name of this machine, or from another page."""
    host = headers.get("host", "")
    if urlsplit(f"//{host}").hostname not in _LOCAL:  # as when another site's name leads to this machine
        return 403, "this page is for this machine only"
    if method in _READING:
        return None
    origin = headers.get("origin")
    is_foreign = origin is not None and urlsplit(origin).netloc != host
    if is_foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "requests from other pages are refused"
    return None
