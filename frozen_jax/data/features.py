"""Features of a source's pictures on disk: a frozen encoder sees each picture once, and training reads what it said.

    DIR/KEY/000003-DIGEST.npy    float32[1024, E], features of 1024 different pictures in the order of the source

A file appears by one rename and is named after the digest of its bytes: what is there is whole or recognised as
damaged, and an interrupted run goes on behind the last file. What encodes, and what KEY stands for, is in
`frozen_jax/features.py`; next in the data flow: `pipeline.py`, which takes a `FeatureTable` in place of pictures.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from frozen_jax.data.dirty import Bad
from frozen_jax.data.images import ImageOptions, is_feature
from frozen_jax.data.loading import ImageLoader
from frozen_jax.data.records import FileSlice, ImageData, RecordError, Source
from frozen_jax.errors import UserError
from frozen_jax.sums import digest_file

PICTURES_PER_FILE = 1024
"""What an interruption costs at most, in each process: 3 MB of features 768 wide."""

_NAME = re.compile(r"(\d{6,})-([0-9a-f]{64})\.npy")
_AT_ONCE = 4096  # records whose pictures are looked at together, so that millions of futures never stand in a queue


class PictureIndex(NamedTuple):
    """The different pictures of a source.

    Attributes:
        samples: the first sample that shows each of them; their order is that of the features.
        places: of each sample, the number of its picture; -1 where there is none to be found.
        digest: SHA-256 that says whether two sources show the same pictures in the same order.
        vectors: by sample, the "pictures" that are features already (`class_features.py`); they are no part of the
            above, so that pictures encoded without them need not be encoded again beside them.
    """

    samples: Int64[np.ndarray, " pictures"]
    places: Int64[np.ndarray, " samples"]
    digest: str
    vectors: Mapping[int, Float32[np.ndarray, " E"]]


def index_pictures(source: Source) -> PictureIndex:
    """Finds out which samples of a source show the same picture, without decoding any.

    A file is known by its path, size and time of change, part of a file by its place besides; bytes and pixels that a
    source holds or makes are digested, which for such a source is a pass over all of it.
    """

    def identify(sample: int) -> bytes | Float32[np.ndarray, " E"] | None:
        try:
            image = source.record(sample).image
            return image if is_feature(image) else _identify(image)
        except (RecordError, OSError):
            return None

    places = np.full(len(source), -1, np.int64)
    known: dict[bytes, int] = {}
    samples: list[int] = []
    vectors = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1), "index") as threads:
        for start in range(0, len(source), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(source)))
            for sample, identity in zip(part, threads.map(identify, part), strict=True):
                if isinstance(identity, np.ndarray):
                    vectors[sample] = identity
                elif identity is not None:
                    places[sample] = known.setdefault(identity, len(samples))
                    if places[sample] == len(samples):
                        samples.append(sample)
    digest = hashlib.sha256(b"".join(known)).hexdigest()
    return PictureIndex(np.array(samples, np.int64), places, digest, vectors)


def _identify(image: ImageData | None) -> bytes | None:
    """Returns 16 bytes that differ between different pictures, or None without a picture."""
    if image is None:
        return None
    digest = hashlib.sha256()
    if isinstance(image, bytes):
        digest.update(image)
    elif isinstance(image, np.ndarray):
        digest.update(f"{image.dtype} {image.shape} ".encode())
        digest.update(np.ascontiguousarray(image).data)
    else:
        path, *part = image if isinstance(image, FileSlice) else (image,)
        status = path.stat()
        digest.update(f"{path} {part} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.digest()[:16]


class FeatureFiles:
    """The files of one set of features.

    Attributes:
        directory: DIR/KEY; made when the first file is written.
        count: pictures.
        width: E.
    """

    def __init__(self, directory: Path, *, count: int, width: int):
        self.directory, self.count, self.width = directory, count, width

    def pictures(self, number: int) -> range:
        """Returns the numbers of the pictures whose features are in a file."""
        return range(number * PICTURES_PER_FILE, min((number + 1) * PICTURES_PER_FILE, self.count))

    def missing(self) -> list[int]:
        """Returns the numbers of the files that have to be made; reads all that are there and removes damaged ones.

        Raises:
            UserError: one cannot be read or removed.
        """
        there = set()
        try:
            for number, path, digest in self._list():
                if digest_file(path) == digest:
                    there.add(number)
                else:
                    path.unlink(missing_ok=True)  # another process may have been first
        except OSError as error:
            raise UserError(
                f"config.vision.feature_cache: {error.filename} cannot be read ({error.strerror}); mend the disk "
                "or the permissions, or name another directory"
            ) from error
        return [number for number in range(-(-self.count // PICTURES_PER_FILE)) if number not in there]

    def write(self, number: int, features: Float32[np.ndarray, "pictures E"]) -> None:
        """Writes a file, at once.

        Raises:
            UserError: the disk is full, read-only or failing.
        """
        buffer = io.BytesIO()
        np.save(buffer, features, allow_pickle=False)
        content = buffer.getvalue()
        path = self.directory / f"{number:06d}-{hashlib.sha256(content).hexdigest()}.npy"
        temporary = self.directory / f".{number:06d}.tmp-{os.getpid()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise UserError(
                f"config.vision.feature_cache: {path} could not be written ({error.strerror}); make space or mend the "
                "disk, then start the same command again: what is there is kept"
            ) from error

    def open(self) -> list[Float32[np.ndarray, "pictures E"]]:
        """Maps all files into memory; the system keeps of them what there is room for.

        Raises:
            UserError: one is not there, or is none of these.
        """
        blocks = {number: np.load(path, mmap_mode="r", allow_pickle=False) for number, path, _ in self._list()}
        for number in range(-(-self.count // PICTURES_PER_FILE)):
            shape = (len(self.pictures(number)), self.width)
            if number not in blocks or blocks[number].shape != shape or blocks[number].dtype != np.float32:
                raise UserError(
                    f"config.vision.feature_cache: file {number} of {self.directory} is not there or not what was "
                    "written; all processes must see the same directory and the same pictures, times of change "
                    "included. Remove that directory to make it anew"
                )
        return [blocks[number] for number in sorted(blocks)]

    def _list(self) -> list[tuple[int, Path, str]]:
        """Returns (number, path, digest) of each file that is there, one for each number."""
        if not self.directory.is_dir():
            return []
        found = {}
        for path in sorted(self.directory.iterdir()):
            if match := _NAME.fullmatch(path.name):
                found[int(match[1])] = (int(match[1]), path, match[2])
        return list(found.values())


class FeatureTable:
    """Features by sample, as `ImageLoader` gives pictures by sample."""

    def __init__(
        self,
        blocks: Sequence[Float32[np.ndarray, "pictures E"]],
        places: Int64[np.ndarray, " samples"],
        *,
        width: int,
        source: Source,
        images: ImageOptions,
        vectors: Mapping[int, Float32[np.ndarray, " E"]] = MappingProxyType({}),
    ):
        """Takes what `FeatureFiles.open` returns.

        Args:
            blocks: of `PICTURES_PER_FILE` features each, but the last; NaN where the picture could not be used.
            places: from `index_pictures`.
            width: E.
            source: is asked again for a picture that could not be used, to say why.
            images: how its pictures are prepared.
            vectors: from `index_pictures`.
        """
        self._blocks, self._places, self._vectors, self._source = blocks, places, vectors, source
        self._pictures = ImageLoader(source, images, cache_bytes=0)
        self._width = width

    def load(self, samples: Int64[np.ndarray, " B"]) -> tuple[Float32[np.ndarray, "B E"], dict[int, Bad]]:
        """Returns (features, what went wrong by row) of samples by number; rows that went wrong are zeros."""
        features = np.zeros((len(samples), self._width), np.float32)
        bad: dict[int, Bad] = {}
        for row, sample in enumerate(samples.tolist()):
            block, place = divmod(int(self._places[sample]), PICTURES_PER_FILE)
            feature = self._blocks[block][place] if block >= 0 else self._vectors.get(sample)
            if feature is None or np.isnan(feature[0]):
                bad[row] = self._explain(sample)
            else:
                features[row] = feature
        return features, bad

    def _explain(self, sample: int) -> Bad:
        _, bad = self._pictures.load([sample])
        if bad:
            return bad[0]
        name = self._source.record(sample).id
        return Bad(
            "no feature",
            f"data: record {name} can be read now and could not when its feature was to be made; remove the directory "
            "in config.vision.feature_cache to make them anew",
        )
