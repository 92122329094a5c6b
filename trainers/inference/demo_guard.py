"""What the servers of this project accept: requests of this machine, of limited size and number.

gradio limits each file, but not how many files a request has, and takes uploads from any page that a browser shows.
FastAPI has no limits.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

_LOCAL = {"127.0.0.1", "localhost", "::1"}
_READING = {"GET", "HEAD", "OPTIONS"}
_OVERHEAD = 1 << 20  # of a request around its files

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Refusal = tuple[int, str]  # status and reason


class RequestGuard:
    """ASGI middleware that refuses requests of other origins, and what is too large, too slow or too much at once.

    Args:
        app: the application that it protects.
        max_bytes: of the files of a request.
        token: what a request must carry (`Authorization: Bearer TOKEN`), then by any name of this machine; None: by a
            local name, without a token.
        open_paths: what can be read without the token.
        max_writing: requests that can send something at the same time; None: any number.
        max_seconds: for sending a request; None: any time.
        as_json: whether a refusal is JSON (`{"error": ...}`) or plain text.
    """

    def __init__(
        self,
        app: App,
        max_bytes: int,
        *,
        token: str | None = None,
        open_paths: frozenset[str] = frozenset(),
        max_writing: int | None = None,
        max_seconds: float | None = None,
        as_json: bool = False,
    ):
        self.app = app
        self.max_bytes = max_bytes + _OVERHEAD
        self.token = token
        self.open_paths = open_paths
        self.max_writing = max_writing
        self.max_seconds = max_seconds
        self.as_json = as_json
        self.num_writing = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or reply with an error."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refuse(refusal, scope["type"], send)
            return
        is_writing = scope.get("method", "GET") not in _READING
        self.num_writing += is_writing
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self.num_writing -= is_writing

    def _refusal(self, scope: MutableMapping[str, Any]) -> Refusal | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope.get("method", "")
        if self.token is None and _host_of(headers.get("host", "")) not in _LOCAL:
            return 403, "this page is for this machine only"  # as when another site's name leads to this machine
        if method not in _READING and _is_foreign(headers):
            return 403, "requests from other pages are refused"
        if self.token is not None and not (method in _READING and scope.get("path") in self.open_paths):
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                return 401, "a token is needed: Authorization: Bearer TOKEN"
        if not headers.get("content-length", "0").isdecimal():
            return 400, "the length of the request is no number"
        if int(headers.get("content-length", "0")) > self.max_bytes:
            return self._too_large()
        if self.max_writing is not None and method not in _READING and self.num_writing >= self.max_writing:
            return 503, f"{self.max_writing} requests are being handled already; try again later"
        return None

    def _too_large(self) -> Refusal:
        return 413, f"the files of a request can have at most {self.max_bytes - _OVERHEAD:,} bytes"

    async def _pass_on(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let the application reply, unless the request becomes too large or takes too long while it is received."""
        received, started, is_complete = 0, time.monotonic(), False
        refusal: Refusal | None = None
        has_started = False

        async def counted() -> Message:
            nonlocal received, refusal, is_complete
            wait = None if self.max_seconds is None or is_complete else started + self.max_seconds - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), wait)
            except TimeoutError:
                refusal = 408, f"the request was not sent within {self.max_seconds:g} s"
                return {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if received <= self.max_bytes:
                return message
            refusal = self._too_large()
            return {"type": "http.disconnect"}

        async def replied(message: Message) -> None:
            nonlocal has_started
            if refusal is None or has_started:
                has_started = True
                await send(message)

        try:
            await self.app(scope, counted, replied)
        except Exception:
            if refusal is None:  # else the application has lost a request that is refused anyway
                raise
        if refusal is not None and not has_started:
            await self._refuse(refusal, scope["type"], send)

    async def _refuse(self, refusal: Refusal, kind: str, send: Send) -> None:
        status, text = refusal
        if kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        content = json.dumps({"error": text}) if self.as_json else text
        headers = [(b"content-type", b"application/json" if self.as_json else b"text/plain; charset=utf-8")]
        headers += [(b"retry-after", b"5")] if status == 503 else []
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content.encode()})


def _host_of(header: str) -> str | None:
    """Return the name of the machine in the header `Host`; None if there is none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _is_foreign(headers: dict[str, str]) -> bool:
    """Return whether a browser sends a request for another page."""
    origin = headers.get("origin")
    is_other = origin is not None and origin.partition("://")[2] != headers.get("host", "")
    return is_other or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
