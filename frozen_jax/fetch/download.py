"""Downloads one file of the table: from where it was left, through mirrors, and checked before it gets its name.

What is downloaded is in `packages.py`; what becomes of it is in `archives.py` and its neighbours.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from frozen_jax.errors import UserError
from frozen_jax.fetch.packages import Package
from frozen_jax.sums import digest_file

INDEX = "https://pypi.org/simple"
"""PyPI's index by default; another one has to answer in JSON (PEP 691)."""

DEBIAN = ("https://deb.debian.org/debian", "https://snapshot.debian.org/archive/debian/20250601T000000Z")
"""Debian's archive, and the one that keeps what left it."""

_JSON = "application/vnd.pypi.simple.v1+json"
_LONGEST_INDEX = 1 << 26
_CHUNK = 1 << 18
_ATTEMPTS = 4
_TIMEOUT_S = 60.0
_BROKEN = (OSError, http.client.HTTPException)  # urllib's errors are OSErrors


def list_urls(package: Package, *, index: str, debian: Sequence[str]) -> list[str]:
    """Returns where a package's file can be had, best first.

    Args:
        package: the file.
        index: address of a package index like PyPI's.
        debian: addresses of copies of Debian's archive.

    Raises:
        UserError: the index cannot be asked or does not have the file.
    """
    if package.pool:
        path = urllib.parse.quote(f"{package.pool}/{package.file}")
        return [f"{mirror.rstrip('/')}/{path}" for mirror in debian]
    address = f"{index.rstrip('/')}/{package.name}/"
    try:
        with _open(address, {"Accept": _JSON}) as answer:
            files = json.loads(answer.read(_LONGEST_INDEX))["files"]
        urls = [urllib.parse.urljoin(address, entry["url"]) for entry in files if entry["filename"] == package.file]
    except (*_BROKEN, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"fetch: {package.name}: the index {address} cannot be read ({error}); check the network, or name another "
            "one that answers in JSON with --index"
        ) from error
    if not urls:
        raise UserError(f"fetch: the index {address} does not have {package.file}; name another one with --index")
    return urls


def download(package: Package, folder: Path, urls: Sequence[str]) -> Path:
    """Returns the file, whole: the one that is there, or a downloaded one.

    What came before a connection broke stays in a `.part` file, and the next call goes on behind it. Nothing gets the
    file's own name before its digest is right.

    Args:
        package: the file.
        folder: where it lies; made if need be.
        urls: tried in turn.

    Raises:
        UserError: the folder cannot be made, no address gives the file, or its bytes are not those of the table.
    """
    target = folder / package.file
    if target.is_file() and digest_file(target) == package.sha256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"fetch: {folder} cannot be made ({error.strerror}); name another folder with --out") from error
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in urls:
        for _ in range(_ATTEMPTS):
            before = _size(part)
            try:
                _continue(url, part, package)
            except _BROKEN as error:
                failures.append(f"{url} ({error or type(error).__name__})")
            if _size(part) in (package.size, before):  # done, or no use in asking here again
                break
        if _size(part) == package.size:
            break
    if _size(part) != package.size:
        raise UserError(
            f"fetch: {package.file}: {_size(part)} of {package.size} bytes are there and no more came from "
            f"{failures[-1] if failures else ', '.join(urls)}; run the command again to go on from here"
        )
    found = digest_file(part)
    if found != package.sha256:
        part.unlink()
        raise UserError(
            f"fetch: {package.file} from {url} has the SHA-256 {found}, the table says {package.sha256}: it was "
            "changed or damaged on the way and is not kept; run the command again, or name another mirror"
        )
    os.replace(part, target)
    return target


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, package: Package) -> None:
    """Appends what is missing, at most up to the package's size; a server without ranges sends all of it again."""
    have = _size(part)
    if have > package.size:
        part.unlink()
        have = 0
    if have == package.size:
        return
    with _open(url, {"Range": f"bytes={have}-"} if have else {}) as answer:
        begins = f"bytes {have}-"
        goes_on = have > 0 and answer.status == 206 and answer.headers.get("Content-Range", "").startswith(begins)
        have = have if goes_on else 0
        with part.open("ab" if goes_on else "wb") as file:
            label = f"{package.name} {package.version}"
            with tqdm(desc=label, total=package.size, initial=have, unit="B", unit_scale=True) as bar:
                for chunk in _chunks(answer, package.size - have):
                    file.write(chunk)
                    bar.update(len(chunk))


def _chunks(stream: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    while most and (chunk := stream.read(min(_CHUNK, most))):
        most -= len(chunk)
        yield chunk


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:  # no file: and ftp:, no passwords in messages
        raise UserError(
            f"fetch: {parts.scheme}://{parts.hostname}: only http and https without a user name are fetched"
        )
    answer: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(url, headers={"User-Agent": "frozen_jax", **headers}), timeout=_TIMEOUT_S
    )
    return answer
