"""A trained model to use: `generate` text, `score` given texts, `embed_image` and `embed_text`.

    import frozen_jax, pathlib
    model = frozen_jax.load("runs/quickstart")
    model.generate([[pathlib.Path("a.png"), " Question: what shape is present? Answer:"]])

Calls leave nothing behind: the same call gives the same bits. Shapes are few (`prompt.round_up`, batches of a power of
two), each is compiled once. Loading is in `restore.py`, the loop over tokens in `decode.py`; `tasks/` only use this.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from frozen_jax.batch import PAD
from frozen_jax.data.folders import PICTURES
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.records import FileSlice
from frozen_jax.decode import DecodeConfig, generate, prepare_decoding
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.prompt import EOS, Image, Prompt, PromptRows, check_room, encode_prompt, lay_out, round_up
from frozen_jax.scoring import embed_texts, score_continuations
from frozen_jax.state import Params
from frozen_jax.stopping import Completion, StopRule
from frozen_jax.tokenizer import Tokenizer

Picture: TypeAlias = os.PathLike | PIL.Image.Image | np.ndarray | bytes | FileSlice
"""A picture file (`pathlib.Path`, never `str`), a Pillow image, pixels uint8[height, width(, 1 | 3 | 4)], an encoded
file's bytes or a part of a file."""

PromptParts: TypeAlias = Sequence[str | Image | Picture]
"""Text and pictures in any order. A `str` is always text, whatever it spells: a prompt must not change its meaning with
the files that happen to lie in a folder."""


@functools.partial(jax.jit, static_argnums=0)
def _embed_images(
    network: FrozenModel, params: Params, images: UInt8[Array | np.ndarray, "B 1 height width 3"]
) -> Float32[Array, "B P D"]:
    return network.embed_images(params, images)[:, 0].astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _embed_prompts(
    network: FrozenModel,
    params: Params,
    tokens: Int[Array, "B S"],
    prefixes: Float[Array, "B I P D"] | None,
) -> Float[Array, "B S D"]:
    return network.embed(params, tokens, prefixes)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model.

    Attributes:
        network: vision encoder, prefix and language model, without parameters.
        params: theirs.
        tokenizer: of the language model.
        images: how pictures are prepared, as in training.
        bos: begin prompts with the tokenizer's beginning-of-sequence token, as in training.
        blind: trained on black pictures: every picture is black to it, and none is opened.
        batch_size: most prompts, or pictures, that are computed together.
    """

    network: FrozenModel
    params: Params
    tokenizer: Tokenizer
    images: ImageOptions
    bos: bool = False
    blind: bool = False
    batch_size: int = 64

    def generate(
        self,
        prompts: Sequence[PromptParts],
        *,
        max_new_tokens: int = 20,
        stop: Sequence[str] = (EOS,),
        num_beams: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        prefixes: Float[np.ndarray, "R P D"] | None = None,
    ) -> list[str]:
        """Continues prompts; returns the new texts as the model spells them, a leading space included.

        Compiled once for each stop rule, number of new tokens and method, besides the shapes.

        Args:
            prompts: each a sequence of text and pictures, or of text and `Image` rows of `prefixes`.
            max_new_tokens: most tokens that are made, at least 1.
            stop: a text ends before the first of these strings; `"[eos]"` (`prompt.EOS`) is the model's own
                end-of-text token. With () every text has `max_new_tokens`.
            num_beams: more than 1 searches by beams; needs temperature 0.
            temperature: 0 takes the most probable token each time; above 0 samples.
            seed: of sampling: the same call with the same seed gives the same texts.
            prefixes: table of pictures that `embed_image` has encoded.

        Raises:
            UserError: a prompt that is empty, too long (with the number of shots that would fit) or holds what is
                neither text nor a picture; a picture that cannot be opened; an option out of range.
        """
        made = self.complete(
            prompts,
            max_new_tokens=max_new_tokens,
            stop=stop,
            num_beams=num_beams,
            temperature=temperature,
            seed=seed,
            prefixes=prefixes,
        )
        return [completion.text for completion in made]

    def complete(
        self,
        prompts: Sequence[PromptParts],
        *,
        max_new_tokens: int = 20,
        stop: Sequence[str] = (EOS,),
        num_beams: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        prefixes: Float[np.ndarray, "R P D"] | None = None,
    ) -> list[Completion]:
        """Continues prompts as `generate` does, and says of each text how it ended.

        Equal prompts are decoded once, unless they are sampled.
        """
        rule = StopRule.from_strings(stop, self.tokenizer)
        decode = DecodeConfig(max_new_tokens, temperature=temperature, num_beams=num_beams, stop_ids=rule.ids)
        asked, table = self._resolve(prompts, prefixes)
        distinct = list(dict.fromkeys(asked)) if temperature == 0 else asked
        rows = self._encode(distinct, new_tokens=max_new_tokens)
        key = jax.random.key(seed)
        lm, lm_params = prepare_decoding(self.network.lm, self.params["lm"])
        made: dict[int, Completion] = {}
        for number, (chunk, embeddings, mask) in enumerate(self._batches(distinct, rows, table)):
            rng = jax.random.fold_in(key, number) if temperature > 0 else None
            result = generate(lm, lm_params, embeddings, mask, config=decode, rng=rng)
            made |= dict(zip(chunk, rule.read(result, self.tokenizer), strict=False))
        if temperature > 0:
            return [made[index] for index in range(len(asked))]
        place = {prompt: index for index, prompt in enumerate(distinct)}
        return [made[place[prompt]] for prompt in asked]

    def score(
        self,
        prompts: Sequence[PromptParts],
        continuations: Sequence[str] | Sequence[Sequence[str]],
        *,
        normalise: bool = False,
        prefixes: Float[np.ndarray, "R P D"] | None = None,
    ) -> Float32[np.ndarray, "B C"]:
        """Returns log-probabilities (nats) of continuations after each prompt; higher is more probable.

        A prompt is run once and its cache shared by its continuations.

        Args:
            prompts: as for `generate`.
            continuations: texts, the same for all prompts, or for each prompt a list of C. They are encoded by
                themselves, so most tokenizers want them to begin with a space.
            normalise: divide by the number of tokens, so that long texts compare with short ones.
            prefixes: as for `generate`.

        Raises:
            UserError: as `generate`; no continuation, an empty one, or lists of different lengths.
        """
        asked, table = self._resolve(prompts, prefixes)
        shared = all(isinstance(text, str) for text in continuations)
        lists: list[Sequence[str]] = [continuations] * len(asked) if shared else list(continuations)  # type: ignore
        classes = len(continuations) if shared else len(lists[0])
        if not classes or {len(texts) for texts in lists} - {classes} or len(lists) != len(asked):
            raise UserError(
                f"score: {len(asked)} prompts, and continuations {str(continuations)[:80]}; give one list of texts for "
                "all prompts, or for every prompt a list of the same length, not empty"
            )
        encode = functools.lru_cache(maxsize=65536)(self.tokenizer.encode)
        ids = [[encode(text) for text in texts] for texts in lists]
        counts = np.array([list(map(len, row)) for row in ids], np.float32).reshape(len(asked), classes)
        if not counts.all():
            row, column = np.argwhere(counts == 0)[0]
            raise UserError(f"score: continuation {lists[row][column]!r} has no tokens; give it at least one")
        longest = int(counts.max(initial=1))
        rows = self._encode(asked, new_tokens=longest)
        room = max(2, 1 << (longest - 1).bit_length())
        sums = np.zeros(counts.shape, np.float32)
        for chunk, embeddings, mask in self._batches(asked, rows, table):
            tokens = np.full((classes, len(embeddings), room), PAD, np.int32)
            for place in range(len(embeddings)):
                for column, words in enumerate(ids[chunk[min(place, len(chunk) - 1)]]):
                    tokens[column, place, : len(words)] = words
            scored = score_continuations(self.network.lm, self.params["lm"], embeddings, jnp.asarray(mask), tokens)
            sums[chunk] = np.asarray(scored)[: len(chunk)]
        return sums / counts if normalise else sums

    def embed_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R P D"]:
        """Returns the vectors that stand for each picture in a prompt; `prefixes` of the other calls.

        Raises:
            UserError: the model was trained on text alone, or a picture cannot be opened.
        """
        if self.network.prefix is None:
            raise UserError("this model was trained on text alone (vision.name is ''); it cannot look at pictures")
        if not len(images):
            return np.zeros((0, self.network.prefix_length, self.network.lm.config.embed_width), np.float32)
        size = self.images.size
        if self.blind:
            black = self._encode_pixels(np.zeros((1, size, size, 3), np.uint8), of=1)
            return np.repeat(black, len(images), axis=0)
        parts = []
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            for start in range(0, len(images), self.batch_size):
                pixels = np.stack(list(threads.map(self._load, images[start : start + self.batch_size])))
                parts.append(self._encode_pixels(pixels, of=len(images)))
        return np.concatenate(parts)

    def embed_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "R D2"]:
        """Returns the language model's last hidden states, averaged over each text.

        For comparing texts with each other. Pictures and texts share no such space in this model: to compare those,
        `score` the text after the picture.

        Raises:
            UserError: a text that is empty or longer than the language model's positions.
        """
        prompts: list[Prompt] = [(text,) for text in texts]
        rows = self._encode(prompts, new_tokens=1)
        made = np.zeros((len(prompts), self.network.lm.config.width), np.float32)
        for chunk, laid in self._lay_out(prompts, rows):
            made[chunk] = np.asarray(embed_texts(self.network, self.params, laid.tokens))[: len(chunk)]
        return made

    def _load(self, image: Picture) -> UInt8[np.ndarray, "height width 3"]:
        return load_image(Path(image) if isinstance(image, os.PathLike) else image, options=self.images)

    def _encode_pixels(self, pixels: UInt8[np.ndarray, "R height width 3"], *, of: int) -> Float32[np.ndarray, "R P D"]:
        filled = pixels[_fill(range(len(pixels)), of=of, most=self.batch_size)]
        return np.asarray(_embed_images(self.network, self.params, filled[:, None]))[: len(pixels)]

    def _resolve(
        self, prompts: Sequence[PromptParts], prefixes: Float[np.ndarray, "R P D"] | None
    ) -> tuple[list[Prompt], Float[np.ndarray, "R2 P D"] | None]:
        """Numbers the pictures of all prompts and encodes each once; the table is None where there are none."""
        if isinstance(prompts, str):
            raise UserError(f"prompts is the text {prompts[:40]!r}; give a list of prompts, each a list of parts")
        known = 0 if prefixes is None else len(prefixes)
        rows: dict[str | int, int] = {}
        pictures: list[Picture] = []

        def resolve(part: str | Image | Picture, index: int) -> str | Image:
            if isinstance(part, str):
                return _check_text(part, index)
            if not isinstance(part, Image):
                name = _name_picture(part, index)
                if name not in rows:
                    rows[name] = known + len(pictures)
                    pictures.append(part)
                part = Image(rows[name])
            elif not 0 <= part.row < known:
                raise UserError(f"prompt {index} has {part}, and prefixes has {known} rows; give the table with it")
            return Image(0) if self.blind else part

        resolved: list[Prompt] = []
        for index, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                raise UserError(f"prompt {index} is the text {prompt[:40]!r}; give a list of parts: [{prompt[:40]!r}]")
            resolved.append(tuple(resolve(part, index) for part in prompt))
        if not pictures:
            return resolved, prefixes
        encoded = self.embed_image(pictures)
        return resolved, encoded if prefixes is None else np.concatenate([prefixes, encoded])

    def _encode(self, prompts: Sequence[Prompt], *, new_tokens: int) -> list[list[int]]:
        """Ids of prompts; `check_room` refuses what is too long."""
        cached = functools.lru_cache(maxsize=65536)(self.tokenizer.encode)
        length, bos_id = self.network.prefix_length, self.tokenizer.bos_id if self.bos else None
        encode = functools.partial(encode_prompt, encode=cached, prefix_length=length)
        rows = [encode(prompt, bos_id=bos_id) for prompt in prompts]
        check_room(
            prompts,
            rows,
            new_tokens=new_tokens,
            limit=self.network.lm.config.max_positions,
            measure=lambda parts: len(encode(parts, bos_id=None)),
        )
        return rows

    def _lay_out(self, prompts: Sequence[Prompt], rows: Sequence[list[int]]) -> Iterator[tuple[list[int], PromptRows]]:
        """Yields batches of prompts of like length: their numbers, and their rows, filled up with repeats."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            chunk = order[start : start + self.batch_size]
            filled = _fill(chunk, of=len(order), most=self.batch_size)
            length = round_up(max(1, len(rows[chunk[-1]])))
            yield chunk, lay_out([rows[i] for i in filled], [prompts[i] for i in filled], length=length)

    def _batches(
        self, prompts: Sequence[Prompt], rows: Sequence[list[int]], table: Float[np.ndarray, "R P D"] | None
    ) -> Iterator[tuple[list[int], Float[Array, "B S D"], Bool[np.ndarray, "B S"]]]:
        """Yields batches of prompts: their numbers, embeddings and mask."""
        for chunk, laid in self._lay_out(prompts, rows):
            prefixes = None
            if table is not None and laid.images.size:
                count = laid.images.shape[1]
                spare = (1 << (count - 1).bit_length()) - count  # few numbers of images, few shapes
                prefixes = table[np.pad(laid.images, ((0, 0), (0, spare)))]
            yield chunk, _embed_prompts(self.network, self.params, laid.tokens, prefixes), laid.mask


def _fill(chunk: Sequence[int], *, of: int, most: int) -> list[int]:
    """Repeats the first of a chunk up to the size of a batch: `most`, or a power of two where all fit into less."""
    size = min(most, 1 << (of - 1).bit_length())
    return [*chunk, *[chunk[0]] * (size - len(chunk))]


def _name_picture(part: object, index: int) -> str | int:
    """What two equal pictures have in common: the path of a file, the identity of an object."""
    if isinstance(part, os.PathLike):
        return str(Path(part))
    if not isinstance(part, PIL.Image.Image | np.ndarray | bytes | FileSlice):
        raise UserError(
            f"prompt {index} has a part of type {type(part).__name__}; a part is text (str) or a picture "
            "(pathlib.Path, PIL.Image or uint8 array)"
        )
    return id(part)


def _check_text(text: str, index: int) -> str:
    if text.lower().endswith(PICTURES) and "\n" not in text and os.path.isfile(text):
        raise UserError(
            f"prompt {index} has the text {text!r}, which names a picture file; a str is always text: give "
            f"pathlib.Path({text!r}) to show the picture"
        )
    return text
