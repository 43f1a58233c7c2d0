"""Batches from a source: which samples, their pictures and texts, this host's rows, made ahead of time by a thread.

Every batch is a pure function of (source, options, position): nothing is shuffled through a buffer, so training
resumes at any step at no cost, and 1, 2, 4 or 8 hosts see the same global batch.
Next in the data flow: `frozen_jax/batch.py`, then `frozen_jax/train.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int64

from frozen_jax.batch import Batch
from frozen_jax.data.augment import AugmentOptions, augment, names_a_side, random_windows
from frozen_jax.data.dirty import POLICIES, Bad, BadItems, replacement
from frozen_jax.data.features import FeatureTable
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.loading import CACHE_BYTES, ImageLoader
from frozen_jax.data.order import Position, hash_keys, sample_rng, stream_indices
from frozen_jax.data.prefetching import prefetch
from frozen_jax.data.records import Record, RecordError, Source
from frozen_jax.data.sequences import lay_out_batch, trim_to_bucket
from frozen_jax.data.text import CachedEncoder, Piece, RowLayout, Text
from frozen_jax.errors import UserError

TextFunction: TypeAlias = Callable[[Record, np.random.Generator], str | Text | None]
"""Chooses and words the text of a record with the sample's own random generator; None: it has no usable text."""


@dataclass(frozen=True)
class PipelineOptions:
    """How records become batches.

    Attributes:
        batch_size: B, rows of the global batch over all hosts.
        seed: of order, wording and augmentation.
        images: preparation of pictures, or None to train on text only (I = 0).
        blind: black pictures, which are not even opened (the paper's control).
        shuffle: a new order in each epoch; False keeps the source's.
        augment: random changes of pictures, or None.
        on_bad: "raise", or "replace": another sample stands in, always the same one.
        pack: pairs of a picture and its text per row, with walls between them; a batch then has batch_size / pack rows
            of I = pack pictures. Long texts meet short ones among a host's own samples.
        pair_probability: share of the batches whose rows hold two pictures with their texts, one after the other, so
            that a model with absolute positions learns to read interleaved prompts. Such a batch has half the rows,
            I = 2 and twice the positions; batch_size per host must be even.
        buckets: lengths to which a batch's common padding is cut, rising, the last max_tokens; () = never cut.
        cache_bytes: prepared pictures are kept in memory if the whole set needs at most this.
        processes: processes that decode pictures; 0 = threads, which about four cores' worth of decoding saturates.
        prefetch: batches made ahead by the background thread.
        classes: names of the classes whose numbers stand in the batches, in order; () = no labels.
        process_index: this host's number.
        process_count: number of hosts; batch_size must be a multiple of it.
    """

    batch_size: int
    seed: int = 0
    images: ImageOptions | None = None
    blind: bool = False
    shuffle: bool = True
    augment: AugmentOptions | None = None
    on_bad: str = "raise"
    pack: int = 1
    pair_probability: float = 0.0
    buckets: tuple[int, ...] = ()
    cache_bytes: int = CACHE_BYTES
    processes: int = 0
    prefetch: int = 2
    classes: tuple[str, ...] = ()
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise UserError(
                f"data: batch_size {self.batch_size} must be a positive multiple of the {self.process_count} hosts, "
                "which take equal shares; change batch_size"
            )
        if not 0 <= self.process_index < self.process_count:
            raise UserError(f"data: process_index {self.process_index} must be below {self.process_count}")
        if not 0.0 <= self.pair_probability <= 1.0 or (self.pair_probability and self.share % 2):
            raise UserError(
                f"data: pair_probability {self.pair_probability} must lie in 0..1, and batch_size {self.batch_size} "
                "per host be even for it; change either"
            )
        if self.pack < 1 or self.share % self.pack or (self.pack > 1 and self.pair_probability):
            raise UserError(
                f"data: pack {self.pack} must be at least 1 and divide the {self.share} samples of a host's batch, and "
                f"pair_probability {self.pair_probability} be 0 beside it; change one of them"
            )
        if self.buckets and (self.process_count > 1 or list(self.buckets) != sorted(set(self.buckets))):
            raise UserError(
                f"data: buckets {self.buckets} must rise, and be () with {self.process_count} hosts: each would cut "
                "by its own longest text"
            )
        if self.on_bad not in POLICIES:
            raise UserError(f"data: on_bad {self.on_bad!r} is not known; use 'raise' or 'replace'")

    @property
    def share(self) -> int:
        """Samples of a batch that this host prepares."""
        return self.batch_size // self.process_count


class Pipeline:
    """Endless training batches, and evaluation batches in the source's order.

    Attributes:
        source: the records.
        options: as given.
        bad: items that could not be used so far (with on_bad = "replace").
    """

    def __init__(
        self,
        source: Source,
        *,
        text: TextFunction,
        encode: Callable[[str], Sequence[int]],
        layout: RowLayout,
        options: PipelineOptions,
        features: FeatureTable | None = None,
        bad: BadItems | None = None,
    ):
        """Makes the pipeline; nothing is opened yet.

        Args:
            source: the records.
            text: chooses and words a record's text; a pure function of its two arguments.
            encode: text to token ids, without special tokens.
            layout: bos, eos, slots and length of a row.
            options: all else.
            features: of the source's pictures, to stand in the batches instead of them.
            bad: account of items that cannot be used; by default a new one, in memory alone.
        """
        if not len(source):
            raise UserError("data: the source holds no records; check the data path and the split")
        self.source, self.options = source, options
        self.bad = BadItems() if bad is None else bad
        self._text, self._encode, self._layout = text, CachedEncoder(encode), layout
        self._numbers = {name: number for number, name in enumerate(options.classes)}
        self._features, self._loader = features, None
        if options.images is not None and not options.blind and features is None:
            self._loader = ImageLoader(
                source, options.images, cache_bytes=options.cache_bytes, processes=options.processes
            )

    def batch_samples(self, position: Position) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """Returns (samples, epochs) of the global batch at a position: the same on every host."""
        options = self.options
        return stream_indices(options.seed, position, options.batch_size, len(self.source), shuffle=options.shuffle)

    def next_position(self, position: Position) -> Position:
        """Returns the position after the batch at `position`."""
        return position.advance(self.options.batch_size, size=len(self.source))

    def batch(self, position: Position) -> Batch:
        """Returns this host's rows of the global batch at a position.

        Raises:
            UserError: a record cannot be used and on_bad is "raise"; the message names it.
        """
        samples, epochs = self.batch_samples(position)
        options = self.options
        rows = slice(options.process_index * options.share, (options.process_index + 1) * options.share)
        key = hash_keys(options.seed, position.epoch, position.index, count=1)[0]
        paired = bool(key * 2.0**-64 < options.pair_probability)
        batch = self._assemble(samples[rows], epochs[rows], augmented=True, paired=paired)
        if options.buckets:
            factor = 2 if paired else 1
            return trim_to_bucket(batch, buckets=[factor * bucket for bucket in options.buckets])
        return batch

    def iterate(self, position: Position = Position(0, 0)) -> Iterator[tuple[Position, Batch]]:  # noqa: B008
        """Yields (position after the batch, batch) without end, made ahead of time by a thread.

        The position that comes with a batch is what a checkpoint keeps once that batch is trained on.
        """
        return prefetch(self._stream(position), depth=self.options.prefetch)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Yields this host's rows of one pass in the source's order, without augmentation, all of the same shape.

        The last batch is filled up with repeats of its first sample whose loss_mask is 0 and whose sample_id is -1.
        """
        return prefetch(self._pass(), depth=self.options.prefetch)

    def _stream(self, position: Position) -> Iterator[tuple[Position, Batch]]:
        while True:
            batch = self.batch(position)
            position = self.next_position(position)
            yield position, batch

    def _pass(self) -> Iterator[Batch]:
        options, size = self.options, len(self.source)
        for start in range(0, size, options.batch_size):
            places = start + options.process_index * options.share + np.arange(options.share)
            samples = np.where(places < size, places, start)
            yield self._assemble(samples, np.zeros(options.share, np.int64), augmented=False, real=places < size)

    def _assemble(
        self,
        samples: Int64[np.ndarray, " B"],
        epochs: Int64[np.ndarray, " B"],
        *,
        augmented: bool,
        paired: bool = False,
        real: Bool[np.ndarray, " B"] | None = None,
    ) -> Batch:
        """Makes the rows of one batch, replacing samples that cannot be used; those that are not `real` are filling."""
        options = self.options
        samples = samples.copy()
        rows = list(range(len(samples)))
        texts: list[Text] = [Text("")] * len(rows)
        images = self._black(len(rows))
        for attempt in range(64):
            pixels, failed = self._load(samples[rows], epochs[rows], augmented=augmented)
            if pixels is not None and attempt == 0:
                images = pixels[:, None]
            elif pixels is not None:
                images[rows, 0] = pixels
            for place, row in enumerate(rows):
                if place not in failed:
                    worded = self._word(int(samples[row]), int(epochs[row]))
                    if isinstance(worded, Bad):
                        failed[place] = worded
                    else:
                        texts[row] = worded
            if not failed:
                break
            for place, bad in failed.items():
                self._replace(rows[place], bad, samples, epochs, attempt)
            rows = [rows[place] for place in sorted(failed)]
        if augmented and options.augment and self._loader:
            may_flip = np.array([not names_a_side(" ".join(text.words())) for text in texts])
            images[:, 0] = augment(
                images[:, 0], options.augment, seed=options.seed, epochs=epochs, samples=samples, may_flip=may_flip
            )
        if real is None:
            real = np.ones(len(samples), bool)
        pieces = [self._piece(text, loss=bool(loss)) for text, loss in zip(texts, real, strict=True)]
        ids = np.where(real, samples, -1)
        batch = lay_out_batch(images, pieces, ids, layout=self._layout, pack=options.pack, paired=paired)
        if not options.classes:
            return batch
        return batch._replace(labels=np.array([self._numbers.get(text.label, -1) for text in texts], np.int32))

    def _black(self, rows: int) -> np.ndarray:
        if self.options.images is None:
            return np.zeros((rows, 0, 1, 1, 3), np.uint8)
        size = self.options.images.size
        return np.zeros((rows, 1, size, size, 3), np.uint8)

    def _load(
        self, samples: Int64[np.ndarray, " B"], epochs: Int64[np.ndarray, " B"], *, augmented: bool
    ) -> tuple[np.ndarray | None, dict[int, Bad]]:
        if self._features is not None:
            return self._features.load(samples)
        if self._loader is None:
            return None, {}
        windows = None
        if augmented and self.options.augment and self.options.augment.zoom < 1.0:
            windows = random_windows(self.options.augment, seed=self.options.seed, epochs=epochs, samples=samples)
        return self._loader.load(samples, windows)

    def _word(self, sample: int, epoch: int) -> Text | Bad:
        try:
            record = self.source.record(sample)
            text = self._text(record, sample_rng(self.options.seed, epoch, sample, stream="text"))
        except RecordError as error:
            return Bad(error.reason, str(error))
        if isinstance(text, str):
            text = Text(text)
        if text is None or not (text.target.strip() or text.label):
            message = f"data: record {record.id} has no usable text; remove it or set data.on_bad='replace'"
            return Bad("no text", message)
        return text

    def _piece(self, text: Text, *, loss: bool) -> Piece:
        prompt: list[int] = []
        prompt_loss: list[int] = []
        for given, predicted in (*text.turns, (text.prompt, "")):
            for words, learned in ((given, 0), (predicted, 1)):
                ids = self._encode(words) if words else ()
                prompt += ids
                prompt_loss += [learned] * len(ids)
        images = 0 if self.options.images is None else 1
        return Piece(self._encode(text.target), prompt, images=images, loss=loss, prompt_loss=prompt_loss)

    def _replace(self, row: int, bad: Bad, samples: np.ndarray, epochs: np.ndarray, attempt: int) -> None:
        sample = int(samples[row])
        if self.options.on_bad == "raise":
            raise UserError(bad.message)
        if sample not in self.bad:
            self.bad.add(sample, item_id=self._id(sample), reason=bad.reason)
        samples[row] = replacement(
            sample, seed=self.options.seed, epoch=int(epochs[row]), attempt=attempt, size=len(self.source)
        )

    def _id(self, sample: int) -> str:
        try:
            return self.source.record(sample).id
        except RecordError:
            return self.source.ids()[sample]
