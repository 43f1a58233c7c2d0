"""What a browser may ask of the page: an ASGI middleware in front of everything.

Only the routes that the page uses exist; a client has a rate, a request a size, and the server a number of open
requests and of bytes on disk. Files are named by paths below the upload directory alone, in requests and in answers'
links. What the page loads comes from itself; the policy that it is sent with has the browser refuse all else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

API = "/gradio_api"
UPLOAD, JOIN = f"{API}/upload", f"{API}/queue/join"
_ROUTES = {
    "GET": re.compile(
        rf"/|/config/?|/theme\.css|/favicon\.ico|/(assets|static)/[\w./-]+|{API}/(info/?|queue/data|upload_progress"
        rf"|startup-events/?|heartbeat/\w+|app_id/?|theme\.css|file=.+)"
    ),
    "HEAD": re.compile("/"),
    "POST": re.compile(rf"{UPLOAD}|{JOIN}|{API}/(cancel|reset)/?"),
}
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
_FORM = re.compile(rb"multipart/form-data; ?boundary=([\w-]+)")
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True)
class Limits:
    """How much is allowed.

    Attributes:
        upload_bytes: of one picture file.
        body_bytes: of any other request.
        stored_bytes: what all uploads take on the disk; they are deleted after `stored_s`.
        stored_s: seconds that an upload is kept.
        per_minute: uploads and questions of one client, on average.
        burst: of these at once.
        open_per_client: requests that are open at a time, streams of answers included.
        open_in_all: likewise, of all clients.
        waiting: questions that wait for the model; it answers one at a time.
    """

    upload_bytes: int = 10 * 2**20
    body_bytes: int = 64 * 2**10
    stored_bytes: int = 2 * 2**30
    stored_s: int = 3600
    per_minute: float = 60.0
    burst: int = 30
    open_per_client: int = 64
    open_in_all: int = 512
    waiting: int = 32


class Refusal(Exception):
    """A request that is not let through: status and a sentence for people."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Rates:
    """A bucket of tokens for each client: `burst` deep, filled at `per_minute`."""

    def __init__(self, *, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic):
        self._per_s, self._burst, self._clock = per_minute / 60, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, client: str) -> float:
        """Takes a token; returns 0, or the seconds until there is one."""
        now = self._clock()
        with self._lock:
            if len(self._buckets) >= 10_000:  # forget those who are full again
                full_s = self._burst / self._per_s
                self._buckets = {name: one for name, one in self._buckets.items() if now - one[1] < full_s}
            level, seen = self._buckets.get(client, (float(self._burst), now))
            level = min(float(self._burst), level + (now - seen) * self._per_s)
            self._buckets[client] = (level - 1 if level >= 1 else level, now)
        return 0.0 if level >= 1 else (1 - level) / self._per_s


class Guard:
    """The middleware."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, limits: Limits, uploads: Path):
        """Guards an application.

        Args:
            app: behind it.
            limits: how much is allowed.
            uploads: directory of uploaded files and of what the page shows; what is in it now is never deleted.
        """
        self.app, self.limits, self.uploads = app, limits, uploads.resolve()
        self._kept = {str(path) for path in self.uploads.rglob("*")}  # the page's own examples
        self._rates = Rates(per_minute=limits.per_minute, burst=limits.burst)
        self._open: dict[str, int] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request through or answers it with a refusal."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        client = str((scope.get("client") or ("unknown",))[0])
        self._open[client] = self._open.get(client, 0) + 1
        try:
            self._check(scope, client)
            if scope["path"] == UPLOAD:
                await self._check_room()
            if scope["method"] == "POST":
                receive = await self._limit_body(scope, receive)
            await self.app(scope, receive, _with_headers(send))
        except Refusal as refusal:
            await _refuse(refusal, send)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def _check(self, scope: Message, client: str) -> None:
        method, path = scope["method"], scope["path"]
        routes = _ROUTES.get(method)
        if routes is None or not routes.fullmatch(path):
            raise Refusal(404, "There is nothing here.")
        if self._open[client] > self.limits.open_per_client or sum(self._open.values()) > self.limits.open_in_all:
            raise Refusal(503, "Too many requests are open. Please try again in a moment.")
        if path.startswith(f"{API}/file=") and not self._is_ours(path.partition("=")[2]):
            raise Refusal(404, "There is no such file.")
        if path in (UPLOAD, JOIN):
            wait_s = self._rates.take(client)
            if wait_s:
                raise Refusal(429, f"That was a little fast. Please wait {wait_s:.0f} s and try again.")

    async def _check_room(self) -> None:
        # Walks, which others need not wait for. Gradio deletes old uploads, but not their folders, nor what came of one
        # that was refused or broke off on the way.
        await asyncio.to_thread(clear_folder, self.uploads, older_s=self.limits.stored_s, kept=self._kept)
        stored = await asyncio.to_thread(measure_folder, self.uploads)
        if stored > self.limits.stored_bytes:
            raise Refusal(507, "The page has no more room for pictures. Please try again in an hour.")

    def _is_ours(self, name: str) -> bool:
        try:
            return Path(name).is_absolute() and Path(name).resolve().is_relative_to(self.uploads)
        except (OSError, ValueError):
            return False

    async def _limit_body(self, scope: Message, receive: Receive) -> Receive:
        """Returns what reads the body: of an upload as it comes, counted; of all else checked beforehand."""
        upload = scope["path"] == UPLOAD
        most = self.limits.upload_bytes + 2**16 if upload else self.limits.body_bytes  # a form's own lines
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > most:
            raise Refusal(413, f"That is too large. At most {self.limits.upload_bytes // 2**20} MB are allowed.")
        if upload:
            return _watch_upload(receive, most, _find_boundary(scope))
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
            if len(body) > most:
                raise Refusal(413, "That is too large.")
        self._check_paths(body)
        read = iter([{"type": "http.request", "body": body}])

        async def replay() -> Message:
            return next(read, None) or await receive()

        return replay

    def _check_paths(self, body: bytes) -> None:
        """Refuses a file that was not uploaded, be it a path of this machine or an address elsewhere."""
        try:
            content = json.loads(body or b"null")
        except (ValueError, RecursionError):
            raise Refusal(400, "That is no request of this page.") from None
        for value in _find_paths(content):
            if not isinstance(value, str) or not self._is_ours(value):
                raise Refusal(400, "That file was not uploaded here.")


def measure_folder(folder: Path) -> int:
    """Returns the bytes that all below a folder takes on the disk: whole blocks, those of sub-folders too."""
    total = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:  # deleted meanwhile
                continue
            total += max(status.st_size, 512 * status.st_blocks)  # some disks give blocks to a file later
    return total


def clear_folder(folder: Path, *, older_s: int, kept: Collection[str]) -> None:
    """Deletes the files below a folder that were last written so long ago, and sub-folders that have been empty since.

    Args:
        folder: to clear; it stays.
        older_s: age in seconds.
        kept: paths that stay, whatever their age.
    """
    before = time.time() - older_s
    for place, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):  # deleted meanwhile, or a folder that is not empty
                if path not in kept and os.lstat(path).st_mtime < before:
                    (os.rmdir if name in folders else os.unlink)(path)


def _find_paths(content: Any) -> Iterator[Any]:
    """Yields every "path" in a request, however deep."""
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            left += value.values()
        elif isinstance(value, list):
            left += value


def _find_boundary(scope: Message) -> bytes:
    """Returns what stands before each part of an upload's form.

    Forms are told apart by browsers' own plain line alone, so that the parser behind can read nothing else from it.
    """
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    form = _FORM.fullmatch(types[0]) if len(types) == 1 else None
    if form is None:
        raise Refusal(400, "That is no upload of this page.")
    return b"--" + form[1]


def _watch_upload(receive: Receive, most: int, boundary: bytes) -> Receive:
    """Returns what reads an upload, and refuses one of more bytes, or of more than the one file that the page sends."""
    count, parts, end = 0, 0, b""

    async def watched() -> Message:
        nonlocal count, parts, end
        message = await receive()
        body = message.get("body", b"")
        count += len(body)
        if count > most:
            raise Refusal(413, "That is too large.")
        end += body  # begins with the last bytes of the message before: a boundary may lie across
        parts += end.count(boundary)
        end = end[1 - len(boundary) :]
        if parts > 2:  # before the file and behind it
            raise Refusal(400, "One picture at a time, please.")
        return message

    return watched


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending


async def _refuse(refusal: Refusal, send: Send) -> None:
    """Answers in the form in which the page shows what it is told."""
    body = json.dumps({"detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
