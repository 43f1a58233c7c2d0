"""A folder's pictures as one index file, and finding them by texts and pictures.

The file is a safetensors: what the model makes of each picture, and which picture in which state that was. With a
model trained for retrieval these are unit vectors, searched by `nearest.py`; with any other they are the prefixes,
texts are found by their log-probability after each picture, and pictures by the likeness of their prefixes.
The command is `tools/retrieve.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float32, Int64
from safetensors.numpy import save
from tqdm import tqdm

from frozen_jax.api import Model, Picture
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.data.folders import PICTURES, existing_folder, walk
from frozen_jax.data.images import ImageError, load_image
from frozen_jax.errors import UserError
from frozen_jax.language_model import fingerprint_params
from frozen_jax.nearest import ApproximateSearch, ExactSearch, Found, open_search
from frozen_jax.prompt import Image, check_list, check_pictures
from frozen_jax.workdir import check_out_file, write_bytes_atomic

FORMAT = "frozen_jax gallery 1"

CHUNK = 256
"""Pictures that are opened and encoded together."""


@dataclass(frozen=True)
class Gallery:
    """What an index file holds.

    Attributes:
        folder: the pictures' root.
        model: fingerprint of the model.
        aligned: the vectors are those of a retrieval head, not prefixes.
        ids: paths below the root.
        stamps: size in bytes and time of change in ns of each file, as it was read.
        vectors: unit vectors, or prefixes.
    """

    folder: str
    model: str
    aligned: bool
    ids: tuple[str, ...]
    stamps: Int64[np.ndarray, "N 2"]
    vectors: Float32[np.ndarray, "N W"] | Float32[np.ndarray, "N P D"]


class Changes(NamedTuple):
    """What became of an index: numbers of pictures, and what could not be used, by path."""

    kept: int
    added: int
    changed: int
    removed: int
    refused: dict[str, str]


def fingerprint_model(model: Model) -> str:
    """Returns the SHA-256 of all that decides a picture's vectors: parameters, preparation of pictures, blindness."""
    described = json.dumps([dataclasses.asdict(model.images), model.blind, model.bos], sort_keys=True)
    return hashlib.sha256(f"{fingerprint_params(model.params)} {described}".encode()).hexdigest()


def index_folder(model: Model, folder: str | Path, out: str | Path) -> Changes:
    """Writes the index of a folder, or brings it up to date: only pictures that are new or changed are encoded.

    The file takes its place when it is whole; an interrupted call leaves the old one.

    Args:
        model: a trained one.
        folder: searched with its sub-folders; what does not open as a picture is left out and reported.
        out: the index file; an existing one must be of this model and folder.

    Raises:
        UserError: no pictures, an index of another model or folder, or one that cannot be read or written.
    """
    root, out = existing_folder(folder).resolve(), Path(out)
    check_out_file(out)
    fingerprint, aligned = fingerprint_model(model), model.network.retrieval is not None
    before = read_gallery(out, model=fingerprint) if out.exists() else None
    if before is not None and before.folder != str(root):
        raise UserError(f"--out={out}: is the index of {before.folder}; name another file for {root}")
    if before is not None:
        _check_vectors(before, model)
    known = {} if before is None else {name: row for row, name in enumerate(before.ids)}
    stamps, refused = _list_pictures(root)
    if not stamps and not refused:
        raise UserError(f"{root} holds no pictures ({', '.join(PICTURES)}); check the path")
    listed = len(stamps) + len(refused)
    same = {n for n, row in known.items() if before is not None and stamps.get(n) == tuple(before.stamps[row].tolist())}
    made: dict[str, np.ndarray] = {}
    todo = [name for name in stamps if name not in same]
    with tqdm(total=len(todo), unit="pictures", disable=None) as bar:
        for start in range(0, len(todo), CHUNK):
            names, pixels = todo[start : start + CHUNK], {}
            for name in names:
                try:
                    pixels[name] = load_image(root / name, options=model.images)
                except ImageError as error:
                    refused[name] = str(error)
            if pixels:
                stacked = np.stack(list(pixels.values()))
                made |= zip(pixels, model.map_image(stacked) if aligned else model.embed_image(stacked), strict=True)
            bar.update(len(names))
    ids = [name for name in stamps if name in same or name in made]
    if not ids:
        raise UserError(f"{root}: none of {listed} pictures can be used; the first: {next(iter(refused.values()))}")
    rows = [made[name] if name in made or before is None else before.vectors[known[name]] for name in ids]
    gallery = Gallery(
        str(root), fingerprint, aligned, tuple(ids), np.array([stamps[name] for name in ids], np.int64), np.stack(rows)
    )
    write_gallery(gallery, out)
    changed = sum(name in known for name in made)
    gone = sum(name not in stamps or name in refused for name in known)
    return Changes(len(same), len(made) - changed, changed, gone, refused)


def _list_pictures(root: Path) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Returns sizes and times of change by path, and what is no file to open, with reasons."""
    stamps: dict[str, tuple[int, int]] = {}
    refused: dict[str, str] = {}
    for name in walk(root):
        if not name.lower().endswith(PICTURES):
            continue
        try:
            status = os.stat(root / name)
        except OSError as error:  # a link to nothing, or gone since it was listed
            refused[name] = str(UserError(f"image {root / name}: cannot be read ({error.strerror}); remove or mend it"))
            continue
        stamps[name] = (status.st_size, status.st_mtime_ns)
    return stamps, refused


def write_gallery(gallery: Gallery, path: str | Path) -> None:
    """Writes an index file atomically.

    Raises:
        UserError: it cannot be written.
    """
    said = {"format": FORMAT, **{name: getattr(gallery, name) for name in ("folder", "model", "aligned", "ids")}}
    # Names of files are bytes, not always those of UTF-8.
    described = np.frombuffer(json.dumps(said, ensure_ascii=False).encode(errors="surrogateescape"), np.uint8)
    content = save({"described": described, "stamps": gallery.stamps, "vectors": gallery.vectors})
    write_bytes_atomic(path, content)


def read_gallery(path: str | Path, *, model: str) -> Gallery:
    """Reads an index file.

    Args:
        path: of the file.
        model: fingerprint of the model that will be asked.

    Raises:
        UserError: no such file, no index, a damaged one, or one of another model.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises on a name that is too long
        raise UserError(f"{path}: no such index; make it with python -m frozen_jax.tools.retrieve index")
    mend = "name another file, or remove this one and index the folder anew"
    try:
        tensors = SafetensorsDirectory(path)
        said = json.loads(tensors["described"].tobytes().decode(errors="surrogateescape"))
        stamps, vectors = tensors["stamps"], tensors["vectors"]
        folder, ids, aligned = said["folder"], said["ids"], said["aligned"]
        fits = said["format"] == FORMAT and isinstance(said["model"], str) and isinstance(aligned, bool)
        fits &= _is_path(folder) and os.path.isabs(folder)
        fits &= isinstance(ids, list) and all(map(_is_below, ids)) and len(set(ids)) == len(ids)
        fits &= len(ids) == len(stamps) == len(vectors) > 0
        fits &= stamps.dtype == np.int64 and stamps.shape[1:] == (2,) and vectors.dtype == np.float32
        fits &= vectors.ndim == (2 if aligned else 3) and bool(np.isfinite(vectors).all())
    except (UserError, KeyError, TypeError, ValueError, RecursionError) as error:
        # The reader's own advice is for a language model's weights: download them again.
        reason = error.__cause__ or repr(error)
        raise UserError(f"{path}: is no index of pictures, or a damaged one ({reason}); {mend}") from error
    if not fits:
        raise UserError(f"{path}: is no index of pictures, or a damaged one; {mend}")
    gallery = Gallery(folder, said["model"], aligned, tuple(ids), stamps, vectors)
    if gallery.model != model:
        raise UserError(
            f"{path}: was made by another model ({gallery.model[:12]}, this one is {model[:12]}), whose vectors mean "
            "something else; give that model, or index the folder into a new file"
        )
    return gallery


def _is_path(name: object) -> TypeGuard[str]:
    """Whether it is a path that the system takes; raises UnicodeEncodeError for one that no file name's bytes give."""
    return isinstance(name, str) and b"\0" not in os.fsencode(name)


def _is_below(name: object) -> bool:
    """Whether it is a path of a file below a folder, as `walk` gives them."""
    return _is_path(name) and os.path.normpath(name) == name and name.split("/")[0] not in ("", ".", "..")


def _check_vectors(gallery: Gallery, model: Model) -> None:
    """Refuses vectors of another kind or shape than the model's own, whatever fingerprint the file has."""
    head, prefixes = model.network.retrieval, (model.network.prefix_length, model.network.lm.config.embed_width)
    aligned, shape = head is not None, prefixes if head is None else (head.width,)
    if (gallery.aligned, gallery.vectors.shape[1:]) != (aligned, shape):
        kind, own = ("a retrieval head's" if one else "prefixes" for one in (gallery.aligned, aligned))
        raise UserError(
            f"the index of {gallery.folder} is damaged: its vectors are {kind} of shape {gallery.vectors.shape[1:]}, "
            f"and this model's are {own} of shape {shape}; remove the file and index the folder anew"
        )


class Searcher:
    """A gallery that is asked, with the model that it was made by.

    Attributes:
        model, gallery: as given.
        vectors: of unit length, by which pictures are compared.
        nearest: the search among them.
    """

    def __init__(self, model: Model, gallery: Gallery):
        """Prepares the search.

        Raises:
            UserError: the vectors are none of this model's.
        """
        _check_vectors(gallery, model)
        self.model, self.gallery = model, gallery
        vectors = gallery.vectors
        if not gallery.aligned:
            pooled = vectors.mean(axis=1)
            self._mean = pooled.mean(axis=0)
            vectors = _to_unit_length(pooled - self._mean)
        self.vectors = vectors
        self.nearest: ExactSearch | ApproximateSearch = open_search(vectors)

    def find(self, parts: Sequence[str | Picture], *, k: int, before: str = "") -> list[tuple[str, float]]:
        """Returns the k pictures that fit best, with their scores.

        Args:
            parts: texts, worded as in training, and pictures in any order; what turns they make, `split_turns` says.
            k: at least 1.
            before: what stands between a picture and its text, such as `data.caption_prompt`.

        Returns:
            Paths below the gallery's folder and, the largest first, cosines, added over the turns; or, for a text and
            a model without a retrieval head, its log-probability per token after each picture.

        Raises:
            UserError: nothing is asked, or a part is neither a text nor a picture; or several parts, and the model was
                not trained for retrieval.
        """
        check_list(parts, "parts")
        if not isinstance(parts, list | tuple):
            raise UserError(f"parts is of type {type(parts).__name__}; give a list of texts and pictures")
        check_pictures([part for part in parts if not isinstance(part, str)])
        if any(not part.strip() for part in parts if isinstance(part, str)):
            raise UserError("a part to find pictures by is an empty text; say what to find")
        if not parts or k < 1:
            raise UserError(
                f"{len(parts)} parts to find {k} pictures by; give a text or a picture, and k of at least 1"
            )
        if not self.gallery.aligned and len(parts) > 1:
            raise UserError(
                "a query of several parts finds pictures with a model trained for retrieval alone; train with "
                "--config.retrieval.weight=0.5, or give one text or one picture"
            )
        found = self._ask(parts, k=min(k, len(self.gallery.ids)), before=before)
        pairs = zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
        return [(self.gallery.ids[row], score) for row, score in pairs if row >= 0]

    def _ask(self, parts: Sequence[str | Picture], *, k: int, before: str) -> Found:
        first, model = parts[0], self.model
        if self.gallery.aligned:
            turns = split_turns(parts)
            told = [turn for turn in turns if isinstance(turn[-1], str)]
            shown = [part for turn in turns for part in turn[-1:] if not isinstance(part, str)]  # without a text
            vectors = [*model.embed_prompts(told, retrieval=True), *model.map_image(shown)]
            # Cosines add up as those of the sum, which any search by inner products takes as it takes one vector.
            return self.nearest.search(np.sum(vectors, axis=0, keepdims=True), k=k)
        if isinstance(first, str):
            prompts = [(Image(row), before) if before else (Image(row),) for row in range(len(self.gallery.ids))]
            scores = model.score(prompts, [first], normalise=True, prefixes=self.gallery.vectors)[:, 0]
            rows = np.argsort(-scores, kind="stable")[:k]
            return Found(scores[None, rows], rows[None])
        return self.nearest.search(_to_unit_length(model.embed_image([first]).mean(axis=1) - self._mean), k=k)


def split_turns(parts: Sequence[str | Picture]) -> list[tuple[str | Picture, ...]]:
    """Returns the turns of a query, each of which finds pictures by itself; their cosines are added.

    A text directly behind a picture says something about it and is read together with it; any other part is a turn of
    its own. Why turns are added and not read in one go: `tasks.retrieval.add_turns`.

    Example:
        >>> split_turns(["a circle", Path("a.png"), "but blue", "and larger"])
        [('a circle',), (PosixPath('a.png'), 'but blue'), ('and larger',)]
    """
    turns: list[tuple[str | Picture, ...]] = []
    for part in parts:
        if isinstance(part, str) and turns and not isinstance(turns[-1][-1], str):
            turns[-1] += (part,)
        else:
            turns.append((part,))
    return turns


def _to_unit_length(vectors: Float32[np.ndarray, "N W"]) -> Float32[np.ndarray, "N W"]:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit.astype(np.float32)
