"""Answers that a model has given: each batch computed once, by one of the processes, and kept in a file if asked for.

A batch is known by a digest of all that its answers depend on besides the model: tokens, the vectors in their slots,
settings of decoding. So an evaluation that was interrupted goes on with the first batch that it had not finished, and
no answer is ever taken for another prompt, picture or model. Used by `api.py`; opened by `run.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from frozen_jax.errors import UserError
from frozen_jax.processes import deal, gather_bytes, is_first
from frozen_jax.prompt_batches import PromptBatch

SYNC_SECONDS = 5.0
"""What a power cut may lose; a kill loses nothing but the batch at work."""


class Answers:
    """One model's answers for one report, a line of JSON per batch. The first process alone reads and writes it.

    The first line says whose they are; at the first answer of another model the file begins anew.

    Attributes:
        taken: how many answers were found here instead of being computed.
    """

    def __init__(self, path: Path, *, model: str) -> None:
        """Looks for answers that are there; a torn line, of a kill in its midst, and what follows it do not count.

        Args:
            path: of the file; it and its folder are made when there is an answer to keep.
            model: fingerprint of all parameters.
        """
        self.taken = 0
        self._path, self._model = path, model
        self._places: dict[str, int] = {}
        self._end = 0
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()
        if is_first() and path.exists():
            self._read()

    def find(self, digests: Sequence[str]) -> dict[int, Any]:
        """Returns the answers of those batches that are there, by the place of their digest."""
        known = {number: self._places[digest] for number, digest in enumerate(digests) if digest in self._places}
        if not known:
            return {}
        found = {}
        with self._path.open("rb") as file:
            for number, place in known.items():
                file.seek(place)
                found[number] = json.loads(file.readline())["answers"]
                self.taken += len(found[number])
        return found

    def add(self, digest: str, answers: Any) -> None:
        """Keeps a batch's answers, JSON values.

        Raises:
            UserError: the disk is full, read-only or failing.
        """
        if not is_first():
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("r+b" if self._end else "wb")
                self._file.truncate(self._end)
                self._file.seek(self._end)
                if not self._end:
                    self._write({"model": self._model})
            self._places[digest] = self._end
            self._write({"batch": digest, "answers": answers})
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise UserError(
                f"{self._path}: could not be written ({error.strerror}); make space or mend the disk, then start again"
            ) from error

    def close(self) -> None:
        """Closes the file until there is more to add."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        with self._path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if not isinstance(entry, dict) or (not self._end and entry != {"model": self._model}):
                    return
                if self._end:
                    self._places[entry["batch"]] = self._end
                self._end += len(line)

    def _write(self, entry: Any) -> None:
        assert self._file is not None
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._end += len(line)


def answer_batches(
    batches: Sequence[PromptBatch],
    compute: Callable[[int], Any],
    *,
    kept: Answers | None,
    table: Float[np.ndarray, "R P D"] | None,
    settings: Sequence[Any],
) -> list[Any]:
    """Returns every batch's answers; every process gets all of them.

    Args:
        batches: the same in every process.
        compute: answers of a batch by its number, JSON values.
        kept: takes what was computed before, and keeps what is computed now.
        table: prefixes that the batches' images are rows of.
        settings: JSON values, all that answers depend on besides model and prompts.
    """
    # A batch's number is the seed of its sampling, so it belongs to what the answers depend on.
    digests = [digest_batch(batch, table, [*settings, number]) for number, batch in enumerate(batches)] if kept else []
    known: dict[int, Any] = {}
    if kept:
        text, *_ = gather_bytes(json.dumps(list(kept.find(digests).items())).encode() if is_first() else b"")
        known = dict(json.loads(text))
    missing = [number for number in range(len(batches)) if number not in known]
    computed = deal(missing, lambda number: json.dumps(compute(number)).encode())
    with contextlib.closing(kept) if kept else contextlib.nullcontext():
        for number, text in zip(missing, computed, strict=True):
            known[number] = json.loads(text)
            if kept:
                kept.add(digests[number], known[number])
    return [known[number] for number in range(len(batches))]


def digest_batch(batch: PromptBatch, table: Float[np.ndarray, "R P D"] | None, settings: Sequence[Any]) -> str:
    """Digests what a batch's answers depend on besides the model, to 32 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([len(batch.numbers), *settings]).encode())
    arrays = [batch.owners]
    for rows in (batch.rows, batch.beginnings):
        arrays += [] if rows is None else [rows.tokens, None if table is None else table[rows.images]]
    for array in arrays:
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
