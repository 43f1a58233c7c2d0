"""How fast an evaluation goes: the calls of one model, timed where they are made. Used by `evaluate.py`.

A task asks a `MeteredModel` as any other model, and need not know of it; what is no method of a model, such as
`fusing.fuse`, says by `count` what it makes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.monitoring
import numpy as np
from jaxtyping import Float32, UInt8

from frozen_jax.adapters import count_prompt
from frozen_jax.api import Model, Picture, PromptParts
from frozen_jax.flops import count_answer
from frozen_jax.prompt import Image
from frozen_jax.stopping import Completion
from frozen_jax.throughput import read_peak_memory

_COMPILING = "/jax/core/compile/"
"""Begins the names of the durations that JAX reports of tracing, lowering and compiling."""


@dataclasses.dataclass
class Meter:
    """Sums over calls.

    Attributes:
        seconds: in calls, compilation included.
        compile_s: of these, tracing and compiling.
        examples: prompts asked or turned into vectors, pictures turned into vectors or drawn, items fused; equal ones
            count each.
        positions: of the prompts among them, words and image slots.
        pictures: different ones in each prompt, and those turned into vectors.
        new_tokens: made, or, where given texts are scored, read after a prompt.
    """

    seconds: float = 0.0
    compile_s: float = 0.0
    examples: int = 0
    positions: int = 0
    pictures: int = 0
    new_tokens: int = 0
    _running: bool = False

    @contextlib.contextmanager
    def time(self) -> Iterator[None]:
        """Times the body, unless it is already inside one that is timed."""
        if self._running:
            yield
            return

        def listen(event: str, duration_secs: float, **_: str | int) -> None:
            self.compile_s += duration_secs if event.startswith(_COMPILING) else 0.0

        jax.monitoring.register_event_duration_secs_listener(listen)
        start, self._running = time.monotonic(), True
        try:
            yield
        finally:
            self.seconds, self._running = self.seconds + time.monotonic() - start, False
            jax.monitoring.unregister_event_duration_listener(listen)

    def summarise(self, model: Model) -> dict[str, Any]:
        """Returns the figures for the report, none where nothing was asked.

        Returns:
            `examples` in all, `compile_s` and, compilation left out, `examples_per_s`; where there were prompts,
            `tokens_per_s`, a token being a position of a prompt or a new word, and `flops_per_example`:
            `flops.count_answer` of a prompt by itself that is as long as the examples are on average;
            `peak_device_memory_bytes` where the device tells.
        """
        if not self.examples:
            return {}
        running_s = max(self.seconds - self.compile_s, 1e-9)
        memory = read_peak_memory()
        return {
            "examples": self.examples,
            "examples_per_s": round(self.examples / running_s, 2),
            **(self._summarise_prompts(model, running_s) if self.positions else {}),
            "compile_s": round(self.compile_s, 2),
            **({"peak_device_memory_bytes": memory} if memory else {}),
        }

    def _summarise_prompts(self, model: Model, running_s: float) -> dict[str, Any]:
        flops = count_answer(
            model.network,
            model.params,
            pictures=self.pictures / self.examples,
            image_size=model.images.size,
            positions=max(1, round(self.positions / self.examples)),
            new_tokens=round(self.new_tokens / self.examples),
        )
        return {
            "tokens_per_s": round((self.positions + self.new_tokens) / running_s, 1),
            "flops_per_example": round(flops),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class MeteredModel(Model):
    """A model whose calls are timed and counted."""

    meter: Meter = dataclasses.field(default_factory=Meter)

    @classmethod
    def wrap(cls, model: Model) -> MeteredModel:
        """Returns the same model with a meter that stands at 0."""
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(Model)})

    def complete(self, prompts: Sequence[PromptParts], **options: Any) -> list[Completion]:
        """As `Model.complete`; `generate` comes here too."""
        with self.meter.time():
            made = super().complete(prompts, **options)
        self._count(prompts)
        self.meter.new_tokens += sum(completion.new_tokens for completion in made)
        return made

    def score(self, prompts: Sequence[PromptParts], continuations: Any, **options: Any) -> Float32[np.ndarray, "B C"]:
        """As `Model.score`."""
        with self.meter.time():
            scores = super().score(prompts, continuations, **options)
        self._count(prompts)
        shared = isinstance(continuations[0], str)
        lists = [continuations] * len(prompts) if shared else continuations
        self.meter.new_tokens += sum(self._length(text) for texts in lists for text in texts)
        return scores

    def embed_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R P D"]:
        """As `Model.embed_image`."""
        with self.meter.time():
            return super().embed_image(images)

    def embed_prompts(self, prompts: Sequence[PromptParts], **options: Any) -> Float32[np.ndarray, "R D2"]:
        """As `Model.embed_prompts`; `embed_text` comes here too."""
        with self.meter.time():
            vectors = super().embed_prompts(prompts, **options)
        self._count(prompts)
        return vectors

    def map_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R W"]:
        """As `Model.map_image`."""
        self.meter.pictures += len(images)
        with count(self, len(images)):
            return super().map_image(images)

    def encode_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R E"]:
        """As `Model.encode_image`."""
        self.meter.pictures += len(images)
        with count(self, len(images)):
            return super().encode_image(images)

    def draw(self, texts: Sequence[str | None], **options: Any) -> UInt8[np.ndarray, "R height width 3"]:
        """As `Model.draw`."""
        with count(self, len(texts)):
            return super().draw(texts, **options)

    def _count(self, prompts: Sequence[PromptParts]) -> None:
        pictures = [[part for part in prompt if not isinstance(part, str)] for prompt in prompts]
        self.meter.examples += len(prompts)
        self.meter.pictures += sum(
            len({part.row if isinstance(part, Image) else id(part) for part in one}) for one in pictures
        )
        self.meter.positions += (self.bos + count_prompt(self.params)) * len(prompts)
        self.meter.positions += self.network.prefix_length * sum(map(len, pictures))
        self.meter.positions += sum(
            self._length(part) for prompt in prompts for part in prompt if isinstance(part, str)
        )

    @functools.cached_property
    def _length(self) -> Callable[[str], int]:
        """Number of tokens of a text; texts come again and again."""
        encode = self.tokenizer.encode
        return functools.lru_cache(maxsize=65536)(lambda text: len(encode(text)))


@contextlib.contextmanager
def count(model: Model, examples: int) -> Iterator[None]:
    """Times the body and counts so many examples as made by it, if the model is metered."""
    if not isinstance(model, MeteredModel):
        yield
        return
    with model.meter.time():
        yield
    model.meter.examples += examples
