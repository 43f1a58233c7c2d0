"""What a source holds and what is wrong with it: counts, lengths, sizes, repeats, a manifest and a grid of samples.

The command line is `frozen_jax/tools/data_check.py`; training never comes here.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from frozen_jax.data.dirty import BadItems
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.order import sample_indices
from frozen_jax.data.records import FileSlice, ImageData, Record, RecordError, Source
from frozen_jax.spelling import spell

_SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)


class _Seen(NamedTuple):
    """What one thread found out about one record."""

    number: int
    record: Record | None
    reason: str
    digest: str
    picture: str
    width: int
    height: int
    form: str


@dataclass
class Inspection:
    """The account of one source.

    Attributes:
        records: in the source.
        bad: by reason, with ids.
        captions: of all records.
        questions: of all records.
        with_picture: records that have one.
        repeated_ids: ids that occur more than once.
        repeated_pictures: pictures whose bytes came before.
        repeated_captions: captions whose text came before.
        words: captions by their number of words.
        tokens: captions by their number of tokens; empty without a tokenizer.
        token_ids: distinct token ids used.
        tags: how often each occurs.
        sizes: (width, height) of the pictures.
        forms: file format and pixel mode, how often.
        digest: SHA-256 over the manifest: equal for equal content in equal order.
        manifest: one line per record: "sha256 id".
    """

    records: int
    bad: BadItems = field(default_factory=BadItems)
    captions: int = 0
    questions: int = 0
    with_picture: int = 0
    repeated_ids: int = 0
    repeated_pictures: int = 0
    repeated_captions: int = 0
    words: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    token_ids: set[int] = field(default_factory=set)
    tags: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    digest: str = ""
    manifest: list[str] = field(default_factory=list)

    def summary(self, *, vocab_size: int = 0) -> dict[str, Any]:
        """Returns the figures as JSON values; shares of the vocabulary if its size is given."""
        sizes = np.array(self.sizes or [(0, 0)])
        result: dict[str, Any] = {
            "records": self.records,
            "with_picture": self.with_picture,
            "captions": self.captions,
            "questions": self.questions,
            "bad": self.bad.report(),
            "repeated": {
                "ids": self.repeated_ids,
                "pictures": self.repeated_pictures,
                "captions": self.repeated_captions,
            },
            "caption_words": _spread(self.words),
            "tags": dict(self.tags.most_common(20)),
            "image_width": _quantiles(sizes[:, 0]),
            "image_height": _quantiles(sizes[:, 1]),
            "image_forms": dict(self.forms.most_common()),
            "sha256": self.digest,
        }
        if self.tokens:
            result["caption_tokens"] = _spread(self.tokens)
            result["vocabulary"] = {"used": len(self.token_ids), "size": vocab_size}
        return result


def inspect_source(
    source: Source,
    *,
    images: ImageOptions,
    encode: Callable[[str], Sequence[int]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Inspection:
    """Reads every record, decodes every picture as training does, and counts.

    Args:
        source: any.
        images: preparation of pictures; a picture that fails it is bad.
        encode: text to token ids, for lengths in tokens; None leaves them out.
        progress: called with the number of records done, every hundred.
    """
    result = Inspection(records=len(source))
    pictures: set[str] = set()
    captions: set[bytes] = set()
    ids: set[bytes] = set()
    whole = hashlib.sha256()
    names = source.ids()
    for seen in _look_at_all(source, images):
        name = seen.record.id if seen.record else names[seen.number]
        name = spell(name)  # a file's name may be no UTF-8
        if seen.reason:
            result.bad.add(seen.number, item_id=name, reason=seen.reason)
        result.repeated_ids += _repeated(name.encode(), ids)
        line = f"{seen.digest} {name}"
        whole.update(line.encode() + b"\n")
        result.manifest.append(line)
        if seen.picture:
            result.with_picture += 1
            result.repeated_pictures += seen.picture in pictures
            pictures.add(seen.picture)
        if seen.form:
            result.sizes.append((seen.width, seen.height))
            result.forms[seen.form] += 1
        if seen.record:
            result.questions += len(seen.record.questions)
            result.tags.update(seen.record.tags)
            for caption in seen.record.captions:
                result.captions += 1
                result.words[len(caption.split())] += 1
                result.repeated_captions += _repeated(caption.casefold().encode("utf-8", "replace"), captions)
                if encode:
                    tokens = encode(caption)
                    result.tokens[len(tokens)] += 1
                    result.token_ids.update(tokens)
        if seen.number % 100 == 99:
            progress(seen.number + 1)
    result.digest = whole.hexdigest()
    return result


def _repeated(value: bytes, seen: set[bytes]) -> bool:
    key = hashlib.blake2b(value, digest_size=8).digest()
    known = key in seen
    seen.add(key)
    return known


def _look_at_all(source: Source, images: ImageOptions) -> Iterator[_Seen]:
    """Yields the records in order, looked at by several threads a few hundred ahead."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for begin in range(0, len(source), 256):
            places = range(begin, min(begin + 256, len(source)))
            yield from pool.map(lambda index: _look(source, index, images), places)


def _look(source: Source, index: int, images: ImageOptions) -> _Seen:
    digest = hashlib.sha256()
    record, reason, picture, form, width, height = None, "", "", "", 0, 0
    try:
        record = source.record(index)
        content = repr((record.id, record.captions, record.questions, record.tags)).encode("utf-8", "backslashreplace")
        digest.update(content)
        if record.image is None:
            reason = "no picture"
        else:
            data = _bytes(record.image)
            picture = hashlib.sha256(data).hexdigest()
            digest.update(bytes.fromhex(picture))
            load_image(record.image, options=images)
            width, height, form = _form(record.image, data)
        if not reason and not (record.captions or record.questions or record.tags):
            reason = "no text"
    except RecordError as error:
        reason = error.reason
    return _Seen(index, record, reason, digest.hexdigest(), picture, width, height, form)


def _bytes(image: ImageData) -> bytes:
    if isinstance(image, FileSlice):
        return image.read()
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return image.tobytes()
    try:
        return image.read_bytes()
    except OSError as error:
        raise RecordError(f"image {image}: cannot be read ({error.strerror})", reason="missing") from error


def _form(image: ImageData, data: bytes) -> tuple[int, int, str]:
    """Returns (width, height, "JPEG RGB") of a picture that is known to open."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0], "pixels"
    with Image.open(io.BytesIO(data)) as opened:
        return opened.width, opened.height, f"{opened.format} {opened.mode}"


def _quantiles(values: np.ndarray) -> dict[str, int]:
    return {f"{round(100 * share)}%": int(np.quantile(values, share)) for share in _SHARES}


def _spread(counts: Counter[int]) -> dict[str, Any]:
    """Returns mean, quantiles and the histogram of counted lengths."""
    if not counts:
        return {"mean": 0.0, "quantiles": {}, "histogram": {}}
    lengths = np.repeat(np.array(sorted(counts)), [counts[length] for length in sorted(counts)])
    return {
        "mean": round(float(lengths.mean()), 2),
        "quantiles": _quantiles(lengths),
        "histogram": {str(length): counts[length] for length in sorted(counts)},
    }


def sample_grid(
    source: Source, *, images: ImageOptions, columns: int = 5, rows: int = 5
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws samples chosen by a fixed order, each with the beginning of its text below; bad ones show their reason."""
    count = min(columns * rows, len(source))
    side, line = max(images.size, 96), 28
    canvas = Image.new("RGB", (columns * (side + 8), rows * (side + line + 8)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, index in enumerate(sample_indices(0, 0, 0, count, len(source)).tolist()):
        left, top = (place % columns) * (side + 8) + 4, (place // columns) * (side + line + 8) + 4
        try:
            record = source.record(index)
            words = [*record.captions, *(q.text for q in record.questions), *record.tags, record.id]
            text = words[0]
            if record.image is not None:
                pixels = Image.fromarray(load_image(record.image, options=images))
                canvas.paste(pixels.resize((side, side), Image.Resampling.NEAREST), (left, top))
        except RecordError as error:
            text = f"BAD: {error.reason}"
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline="gray")
        plain = text.encode("latin-1", "replace").decode("latin-1")
        letters = max(8, side // 6)
        draw.text((left, top + side + 2), f"{plain[:letters]}\n{plain[letters : 2 * letters]}", fill="black")
    return np.asarray(canvas)


def write_manifest(inspection: Inspection, path: Path) -> None:
    """Writes one line per record, "sha256 id", so that two copies of a set can be compared by `diff`."""
    path.write_text("".join(f"{line}\n" for line in inspection.manifest), encoding="utf-8", errors="backslashreplace")
