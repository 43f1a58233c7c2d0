"""From one line of config to a source: "kind:path?option=value", or several of them mixed by weight.

    folder:/data/stamps                                     pictures with .txt captions
    jsonl:/data/train.jsonl?root=/data/pictures             any table
    tfds:coco_captions?split=val                            TensorFlow Datasets
    0.7 * tar:/data/cc3m/*.tar + 0.3 * folder:/data/stamps  a mixture

The kinds are the keys of `KINDS`; each one's options are the keyword arguments of its class or function.
Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

import numpy as np
from jaxtyping import Int64

from frozen_jax.data.annotations import coco_captions, karpathy_split, vqa_pairs
from frozen_jax.data.binding import BindingTexts
from frozen_jax.data.class_features import ClassFeatures
from frozen_jax.data.cleaning import CleanOptions, clean_source
from frozen_jax.data.fake import FakeSource
from frozen_jax.data.folders import ClassFolder, SidecarFolder
from frozen_jax.data.holdout import hold_out
from frozen_jax.data.records import Record, Source, Subset
from frozen_jax.data.scene_sources import DescribedScenes, open_easy_vqa
from frozen_jax.data.tables import CsvTable, JsonLines, TsvTable
from frozen_jax.data.tar import TarShards
from frozen_jax.data.tfds_source import TfdsSource
from frozen_jax.data.tfrecord import array_record_files, tfrecord_files
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError

SCENES = 1_000_000
"""Scenes in words that `scene_text` holds; each is made when it is asked for."""


def _fake(number: str) -> FakeSource:
    return FakeSource(_read_number("fake", number))


def _scene_text(seed: str) -> DescribedScenes:
    return DescribedScenes(SCENES, seed=_read_number("scene_text", seed))


def _binding_text(seed: str, words: str = "62", lead: str = "0.75") -> BindingTexts:
    number = _read_number("binding_text", seed)
    try:
        return BindingTexts(SCENES, seed=number, words=int(words), lead=float(lead))
    except ValueError as error:
        raise UserError(f"data: an option of binding_text is no number ({error})") from error


def _read_number(kind: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"data: '{kind}:{text}' must give a whole number, such as {kind}:64")
    return int(text)


KINDS: dict[str, Callable[..., Source]] = {
    "array_record": array_record_files,
    "binding_text": _binding_text,
    "class_features": ClassFeatures,
    "classes": ClassFolder,
    "coco": coco_captions,
    "csv": CsvTable,
    "easy_vqa": open_easy_vqa,
    "fake": _fake,
    "folder": SidecarFolder,
    "jsonl": JsonLines,
    "karpathy": karpathy_split,
    "scene_text": _scene_text,
    "tar": TarShards,
    "tfds": TfdsSource,
    "tfrecord": tfrecord_files,
    "tsv": TsvTable,
    "vqa": vqa_pairs,
}

_WEIGHTED = re.compile(r"\s*(?:([0-9.]+)\s*\*\s*)?(\w+:.*?)\s*")


def open_source(line: str, *, clean: CleanOptions | None = None) -> Source:
    """Opens a source, or a mixture of several joined by " + ", each with an optional weight before " * ".

    Args:
        line: "kind:path?option=value", see above.
        clean: what is done to its captions, within each part of a mixture; None leaves them as they are.

    Raises:
        UserError: unknown kind or option, or whatever the source itself finds wrong.
    """
    return _mix(*_open_parts(line, clean))


def _mix(sources: Sequence[Source], weights: Sequence[float] | None) -> Source:
    return sources[0] if weights is None else Mixture(sources, weights)


def _open_parts(line: str, clean: CleanOptions | None) -> tuple[list[Source], list[float] | None]:
    """Returns the sources of a line and their weights, None for one source without a weight."""
    sources, weights = [], []
    for part in line.split(" + "):
        match = _WEIGHTED.fullmatch(part)
        if not match:
            raise UserError(f"data: source {part!r} is not 'kind:path?option=value'; kinds: {', '.join(KINDS)}")
        weights.append(match[1])
        source = _open_one(match[2])
        sources.append(source if clean is None else clean_source(source, clean))
    if len(sources) == 1 and weights[0] is None:
        return sources, None
    if None in weights and any(weights):
        raise UserError(f"data: {line!r} weights some sources and not others; give all of them a weight or none")
    if None in weights:
        return sources, [float(len(source)) for source in sources]
    try:
        return sources, [float(weight) for weight in weights]
    except ValueError as error:
        raise UserError(f"data: {line!r} has a weight that is no number ({error})") from error


def open_splits(settings: DataSettings, *, validation_examples: int) -> tuple[Source, Source]:
    """Opens what a config trains on and what it is validated on, both cleaned.

    Args:
        settings: the config's `data`.
        validation_examples: at most so many records for validation: the first of `settings.validation`, of a mixture
            the first of each part by its weight; or, where that is "", records held out from `settings.train`, at most
            a tenth of each part and the same ones in every run (`hold_out`).

    Raises:
        UserError: as `open_source`; or too few records to hold any out.
    """
    sources, weights = _open_parts(settings.train, settings.clean)
    if settings.validation:
        validation = open_source(settings.validation, clean=settings.clean)
        return _mix(sources, weights), Subset(validation, choose_first(validation, validation_examples))
    rests, parts = hold_out(sources, weights or [1.0], count=validation_examples)
    return _mix(rests, weights), _mix(parts, weights and [float(len(part)) for part in parts])


def _open_one(line: str) -> Source:
    kind, _, rest = line.partition(":")
    path, _, query = rest.partition("?")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(KINDS)}"
        raise UserError(f"data: source {line!r}: there is no kind {kind!r}; {hint}")
    if re.fullmatch(r"[/\w.*-]*\?[/\w.*?-]*", rest):  # a ? of a file pattern, not of options
        path, query = rest, ""
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # a path may hold a plus
    build = KINDS[kind]
    parameters = list(inspect.signature(build).parameters.values())
    known = {p.name: p for p in parameters[1:]}
    for option in options:
        if option not in known:
            raise UserError(f"data: {kind!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise UserError(f"data: {kind!r} needs the option {name!r}: write {kind}:{path}?{name}=…")
    return build(path, **options)


class Mixture:
    """Several sources as one, in given proportions.

    One pass draws from each source in proportion to its weight and is just long enough that every record of every
    source comes at least once; sources with more than their share of weight come round several times.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        """Computes the length of a pass.

        Args:
            sources: at least one, none empty.
            weights: positive, of any sum.

        Raises:
            UserError: an empty source, or a weight that is not positive.
        """
        for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
            if not len(source):
                raise UserError(f"data: source {number} of the mixture holds no records; check its path")
            if not 0 < weight < math.inf:
                raise UserError(f"data: weight {weight} of source {number} must be positive; leave the source out")
        self.sources = list(sources)
        scale = max(len(source) / weight for source, weight in zip(sources, weights, strict=True))
        self.draws = [max(len(s), round(scale * w)) for s, w in zip(sources, weights, strict=True)]
        self._ends = np.cumsum(self.draws)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def ids(self) -> list[str]:
        """Returns "0:id" for records of the first source, and so on; "0:id#2" when one comes round again."""
        ids = []
        for number, (source, draws) in enumerate(zip(self.sources, self.draws, strict=True)):
            own = source.ids()
            ids += [_mixed_id(number, own[i % len(own)], i // len(own)) for i in range(draws)]
        return ids

    def record(self, index: int) -> Record:
        """Returns the record at `index`."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[number]) + self.draws[number]
        turn, inner = divmod(place, len(self.sources[number]))
        record = self.sources[number].record(inner)
        return record._replace(id=_mixed_id(number, record.id, turn))


def choose_first(source: Source, count: int) -> Int64[np.ndarray, " count"]:
    """Returns the indices of the first records; of a mixture those of each part, in proportion to its draws."""
    draws = np.array(source.draws if isinstance(source, Mixture) else [len(source)])
    ends = np.cumsum(draws)
    shares = np.diff(np.rint(ends * min(1.0, count / ends[-1])).astype(int), prepend=0)
    return np.concatenate([begin + np.arange(share) for begin, share in zip(ends - draws, shares, strict=True)])


def _mixed_id(number: int, inner: str, turn: int) -> str:
    return f"{number}:{inner}#{turn + 1}" if turn else f"{number}:{inner}"
