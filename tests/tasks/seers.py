"""Models for tests of tasks: they see one number per picture and answer by rule, so that every figure is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from frozen_jax.api import Model
from frozen_jax.prompt import Image
from frozen_jax.stopping import Completion


class Seer(Model):
    """Sees the mean red of a picture; `answer(parts)` continues a prompt whose images are such numbers.

    `asked` collects the prompts of every call, pictures as numbers.
    """

    def __init__(self, answer=None, *, blind=False):
        for name, value in (
            ("answer", answer),
            ("asked", []),
            ("blind", blind),
            ("network", Network()),
            ("tokenizer", Words()),
        ):
            object.__setattr__(self, name, value)

    def embed_image(self, images):
        seen = [0.0 if self.blind else red_of(image) for image in images]
        return np.array(seen, np.float32).reshape(-1, 1, 1) * np.array([[[1.0, 0.5]]], np.float32) + np.array(
            [[[0.0, 1.0]]], np.float32
        )

    def encode_image(self, images):
        """One feature for each of four shades: a head can tell them apart, and nothing else."""
        shades = [0 if self.blind else int(red_of(image)) // 80 for image in images]
        return np.eye(4, dtype=np.float32)[shades]

    def see(self, prompts, prefixes):
        shown = [
            tuple(float(prefixes[part.row, 0, 0]) if isinstance(part, Image) else part for part in prompt)
            for prompt in prompts
        ]
        self.asked.append(shown)
        return shown

    def complete(self, prompts, *, max_new_tokens, stop, prefixes):
        made = [self.answer(parts) for parts in self.see(prompts, prefixes)]
        return [one if isinstance(one, Completion) else Completion(one, True, 1) for one in made]

    def generate(self, prompts, *, max_new_tokens, stop, prefixes):
        return [
            completion.text
            for completion in self.complete(prompts, max_new_tokens=max_new_tokens, stop=stop, prefixes=prefixes)
        ]

    def score(self, prompts, continuations, *, normalise=False, prefixes):
        """Texts of each prompt's own: what it would say costs nothing, each word of anything else one nat."""
        rows = self.see(prompts, prefixes)
        if not isinstance(continuations[0], str):
            said = [self.answer(parts).split() for parts in rows]
            costs = [
                [-len(t.split()) * (t.split() != s) for t in own] for s, own in zip(said, continuations, strict=True)
            ]
            return np.array(costs, np.float32)
        assert normalise
        return np.array([[self.answer(parts, name) for name in continuations] for parts in rows], np.float32)


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text):
        return text.split()


class Network:
    """What tasks look at: that there is a vision tower."""

    vision = object()


def red_of(image) -> float:
    """Mean red of a picture, 0 to 255, in tens."""
    if isinstance(image, bytes):
        import io

        image = Pillow.open(io.BytesIO(image))
    if isinstance(image, Path):
        image = Pillow.open(image)
    return float(round(float(np.asarray(image)[..., 0].mean()) / 10) * 10)


def paint(red: int) -> np.ndarray:
    """A flat picture."""
    return np.full((8, 8, 3), (red, 0, 0), np.uint8)
