"""webdataset shards: tar files whose members with the same stem form one sample (img2dataset's output).

A shard is read through once to index it; the index lies beside the shard (or in the user's cache where that cannot be
written) and from then on any sample is one seek away. Nothing is ever extracted. Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import glob
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from frozen_jax.data.folders import PICTURES
from frozen_jax.data.index_cache import cached_index
from frozen_jax.data.records import FileSlice, Record, RecordError
from frozen_jax.data.tables import strings
from frozen_jax.errors import UserError

_INDEX_VERSION = 1


class _Entry(NamedTuple):
    """One sample of a shard: where its parts lie, or why it is bad."""

    key: str
    members: dict[str, tuple[int, int]]
    reason: str = ""


class TarShards:
    """The samples of one or many tar shards."""

    def __init__(self, path: str | Path, *, caption: str = "caption"):
        """Indexes the shards that have no index yet.

        Args:
            path: a `.tar` file, a folder of them, or a pattern with * and ? ("/data/cc3m/*.tar").
            caption: key of the caption in a sample's `.json`, used when it has no `.txt`.

        Raises:
            UserError: no shard is found, or one is compressed.
        """
        place = Path(path).expanduser()
        pattern = place / "*.tar" if place.is_dir() else place
        names = [Path(name) for name in sorted(glob.glob(str(pattern)))]
        if not names:
            raise UserError(f"data: no tar shard at {place}; check the path or pattern")
        self._caption = caption
        self._entries: list[tuple[Path, _Entry]] = []
        for number, shard in enumerate(names):
            rows = cached_index(
                shard, kind="tar", version=_INDEX_VERSION, build=index_shard, progress=f"{number + 1}/{len(names)}"
            )
            for key, members, reason in rows:
                places = {suffix: (int(begin), int(size)) for suffix, (begin, size) in members.items()}
                self._entries.append((shard, _Entry(key, places, reason)))

    def __len__(self) -> int:
        return len(self._entries)

    def ids(self) -> list[str]:
        """Returns "shard.tar/key" for every sample."""
        return [f"{shard.name}/{entry.key}" for shard, entry in self._entries]

    def record(self, index: int) -> Record:
        """Returns one sample; its picture is read later.

        Raises:
            RecordError: the sample was found bad when its shard was indexed, or its text cannot be read.
        """
        shard, entry = self._entries[index]
        name = f"{shard.name}/{entry.key}"
        if entry.reason:
            raise RecordError(f"data: {name}: {entry.reason}; make the shard again", reason=entry.reason)
        parts = {suffix: FileSlice(shard, *place) for suffix, place in entry.members.items()}
        image = next((parts[suffix] for suffix in parts if f".{suffix}" in PICTURES), None)
        captions: tuple[str, ...] = ()
        if "txt" in parts:
            captions = (decode(parts["txt"].read(), name).strip(),)
        elif "json" in parts:
            captions = strings(self._json(parts["json"], name).get(self._caption), name)
        tags = (decode(parts["cls"].read(), name).strip(),) if "cls" in parts else ()
        return Record(id=name, image=image, captions=captions, tags=tags)

    def _json(self, part: FileSlice, name: str) -> Mapping[str, Any]:
        try:
            content = json.loads(part.read())
        except (ValueError, RecursionError) as error:
            raise RecordError(f"data: {name} has a damaged .json ({error}); mend it", reason="not JSON") from error
        return content if isinstance(content, Mapping) else {}


def decode(data: bytes, name: str) -> str:
    """Returns the text of bytes.

    Raises:
        RecordError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"data: {name} is not UTF-8 ({error.reason}); convert it", reason="not UTF-8") from error


def index_shard(shard: Path) -> list[_Entry]:
    """Reads the headers of a shard and returns its samples in order, bad ones marked.

    Marked are: names that are absolute or climb out of the folder ("unsafe name"), links and devices ("not a file"),
    a second sample with the same key ("duplicate key"), and the sample in which a shard ends early ("cut shard").

    Raises:
        UserError: not a tar, or a compressed one, which cannot be entered in the middle.
    """
    with shard.open("rb") as file:
        head = file.read(2)
    if head == b"\x1f\x8b":
        raise UserError(f"data: {shard} is compressed, so it cannot be entered in the middle; gunzip it first")
    size = shard.stat().st_size
    entries: list[_Entry] = []
    used: set[str] = set()
    open_key, end = "", 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isdir():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = f"{folder}/{stem}" if folder else stem, suffix.lower()
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    entries.append(_Entry(member.name, {}, "unsafe name"))
                elif not member.isfile():
                    entries.append(_Entry(member.name, {}, "not a file"))
                elif member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                elif key == open_key and entries and suffix not in entries[-1].members:
                    entries[-1].members[suffix] = (member.offset_data, member.size)
                    continue
                else:
                    reason = "duplicate key" if key in used else ""
                    entries.append(_Entry(key, {suffix: (member.offset_data, member.size)}, reason))
                open_key = entries[-1].key
                used.add(key)
        if size < end + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        if not entries:
            raise UserError(f"data: {shard} is not a tar file ({error}); is it cut? fetch it again") from error
        entries.append(_Entry("(end)", {}, "cut shard"))
    return entries
