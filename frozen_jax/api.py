"""A trained model to use: `generate` text, `score` given texts, `embed_image`, `embed_text`; `map_image` to find them.

    import frozen_jax, pathlib
    model = frozen_jax.load("runs/quickstart")
    model.generate([[pathlib.Path("a.png"), " Question: what shape is present? Answer:"]])

Calls leave nothing behind: the same call gives the same bits. Shapes are few (`prompt.round_up`, batches of a power of
two), each is compiled once. Several processes make the same calls and share the batches. Loading is in `restore.py`,
batching in `prompt_batches.py`, the loop over tokens in `decode.py`; `tasks/` only use this.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from frozen_jax.adapters import count_prompt
from frozen_jax.answers import Answers, answer_batches
from frozen_jax.batch import open_row
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.records import FileSlice
from frozen_jax.decode import DecodeConfig, generate, prepare_decoding
from frozen_jax.drawing import draw_pictures, lay_out_texts
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.prefill import Beginning
from frozen_jax.processes import deal
from frozen_jax.prompt import (
    EOS,
    Image,
    Prompt,
    PromptRows,
    check_list,
    check_pictures,
    check_room,
    check_text,
    count_prefixes,
    encode_prompt,
    make_key,
    name_picture,
)
from frozen_jax.prompt_batches import Encoded, PromptBatch, fill_up, find_query, make_batches
from frozen_jax.scoring import map_images, map_texts, pool_images, pool_states, score_rows
from frozen_jax.sharding import find_row_sharding
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
        answers: keeps what `generate`, `complete` and `score` answer, and gives it back to the same call.
    """

    network: FrozenModel
    params: Params
    tokenizer: Tokenizer
    images: ImageOptions
    bos: bool = False
    blind: bool = False
    batch_size: int = 64
    answers: Answers | None = None

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

        What several prompts have before their last picture, such as shots, is computed once for all of them. Compiled
        once for each number of new tokens and method, besides the shapes.

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
        batches = self._make_batches(distinct, new_tokens=max_new_tokens)
        key = make_key(seed)
        lm, lm_params = self._decoder

        def answer(number: int) -> list[Completion]:
            embeddings, mask, beginning = self._embed(batches[number], table)
            rng = jax.random.fold_in(key, number) if temperature > 0 else None
            made = generate(lm, lm_params, embeddings, mask, config=decode, rng=rng, beginning=beginning)
            return rule.read(made, self.tokenizer)[: len(batches[number].numbers)]

        settings = ["complete", max_new_tokens, list(stop), num_beams, temperature, seed]
        found = answer_batches(batches, answer, kept=self.answers, table=table, settings=settings)
        made: dict[int, Completion] = {}
        for batch, answers in zip(batches, found, strict=True):
            made |= zip(batch.numbers, (Completion(*one) for one in answers), strict=True)
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
        check_list(continuations, "continuations")
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
        lengths = counts.max(axis=0, initial=1).astype(int).tolist()
        batches = self._make_batches(asked, new_tokens=max(lengths))

        def answer(number: int) -> list[list[float]]:
            embeddings, mask, beginning = self._embed(batches[number], table)
            numbers = batches[number].numbers
            rows = [ids[numbers[min(place, len(numbers) - 1)]] for place in range(len(embeddings))]
            lm, lm_params = self.network.lm, self.params["lm"]
            found: list[list[float]] = score_rows(lm, lm_params, embeddings, mask, rows, beginning, lengths=lengths)
            return found[: len(numbers)]

        settings = ["score", [list(texts) for texts in lists[:1] if shared] or [list(texts) for texts in lists]]
        sums = np.zeros(counts.shape, np.float32)
        found = answer_batches(batches, answer, kept=self.answers, table=table, settings=settings)
        for batch, answers in zip(batches, found, strict=True):
            sums[batch.numbers] = answers
        return sums / counts if normalise else sums

    def embed_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R P D"]:
        """Returns the vectors that stand for each picture in a prompt; `prefixes` of the other calls.

        Raises:
            UserError: the model was trained on text alone, or a picture cannot be opened.
        """
        network = self._check_vision()
        return self._look(images, _embed_images, (network.prefix_length, network.lm.config.embed_width))

    def embed_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "R D2"]:
        """Returns the language model's last hidden states, averaged over each text.

        For comparing texts with each other. Pictures and texts share no such space in this model: to compare those,
        `score` the text after the picture, or train for retrieval.

        Raises:
            UserError: a text that is empty or longer than the language model's positions.
        """
        check_list(texts, "texts")
        return self.embed_prompts([(text,) for text in texts])

    def embed_prompts(
        self,
        prompts: Sequence[PromptParts],
        *,
        retrieval: bool = False,
        prefixes: Float[np.ndarray, "R P D"] | None = None,
    ) -> Float32[np.ndarray, "R D2"]:
        """Returns one vector for each prompt of text and pictures.

        Args:
            prompts: as for `generate`.
            retrieval: the unit vectors that find pictures, those of `[RET]` behind each prompt, in place of the
                language model's last hidden states averaged over the prompt.
            prefixes: as for `generate`.

        Raises:
            UserError: as `generate`; or the model was not trained for retrieval.
        """
        network = self._check_retrieval() if retrieval else self.network
        width = network.retrieval.width if retrieval and network.retrieval else network.lm.config.embed_width
        asked, table = self._resolve(prompts, prefixes)
        made = np.zeros((len(asked), width), np.float32)
        for batch in self._make_batches(asked, new_tokens=1, apart=False):
            embeddings, mask, _ = self._embed(batch, table)
            vectors = (map_texts if retrieval else pool_states)(network, self.params, embeddings, mask)
            made[batch.numbers] = np.asarray(vectors)[: len(batch.numbers)]
        return made

    def map_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R W"]:
        """Returns the unit vectors by which pictures are found: by prompts, and by each other.

        Raises:
            UserError: the model was not trained for retrieval, or a picture cannot be opened.
        """
        network = self._check_retrieval()
        return self._look(images, map_images, (network.retrieval.width if network.retrieval else 0,))

    def encode_image(self, images: Sequence[Picture] | UInt8[np.ndarray, "R h w 3"]) -> Float32[np.ndarray, "R E"]:
        """Returns the encoder's pooled features, for heads of one's own (`heads.py`).

        Raises:
            UserError: as `embed_image`.
        """
        vision: Any = self._check_vision().vision
        return self._look(images, pool_images, (vision.width,))

    def _check_vision(self) -> FrozenModel:
        if self.network.fusion is not None:
            raise UserError("this model names classes by a picture and a text; use frozen_jax.fusing.fuse")
        if self.network.generator is not None:
            raise UserError("this model draws pictures and looks at none; use draw, or tools.generate_image")
        if self.network.prefix is None:
            raise UserError("this model was trained on text alone (vision.name is ''); it cannot look at pictures")
        return self.network

    def _check_retrieval(self) -> FrozenModel:
        if self.network.retrieval is None:
            raise UserError("this model was not trained for retrieval; train one with --config.retrieval.weight=0.5")
        return self.network

    def _look(self, images: Sequence[Picture] | np.ndarray, encode: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Runs a program of one picture's pixels over all pictures, in batches shared by the processes."""
        check_pictures(images)
        size = self.images.size

        def run(pixels: np.ndarray, of: int) -> np.ndarray:
            filled = pixels[fill_up(range(len(pixels)), of=of, most=self.batch_size, devices=self._devices)]
            return np.asarray(encode(self.network, self.params, self._put(filled[:, None])))[: len(pixels)]

        if self.blind and len(images):
            return np.repeat(run(np.zeros((1, size, size, 3), np.uint8), 1), len(images), axis=0)
        open_picture = functools.partial(load_image, options=self.images)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:

            def encode_batch(start: int) -> bytes:
                pixels = np.stack(list(threads.map(open_picture, images[start : start + self.batch_size])))
                return run(pixels, len(images)).tobytes()

            encoded = bytearray().join(deal(range(0, len(images), self.batch_size), encode_batch))
        return np.frombuffer(encoded, np.float32).reshape(len(images), *shape)

    def draw(
        self, texts: Sequence[str | None], *, steps: int = 20, guidance: float = 2.0, seed: int = 0
    ) -> UInt8[np.ndarray, "R height width 3"]:
        """Draws a picture of each text, by a model that was trained with a generator.

        Args:
            texts: worded as in training (`data.caption_format`); None draws without a text.
            steps: from noise to picture, at least 1; each number is compiled once.
            guidance: 1 follows the text alone, at half the cost; more exaggerates it.
            seed: of the noise; a picture depends on it, on its text and on its place in `texts`.

        Raises:
            UserError: no generator, a text that is empty or too long, an option out of range.
        """
        tokens = lay_out_texts(self.network, self.tokenizer, texts, bos=self.bos)
        told = np.array([text is not None for text in texts], bool)
        draw = functools.partial(draw_pictures, batch_size=self.batch_size, put=self._put, devices=self._devices)
        return draw(self.network, self.params, tokens, told, steps=steps, guidance=guidance, seed=seed)

    def _resolve(
        self, prompts: Sequence[PromptParts], prefixes: Float[np.ndarray, "R P D"] | None
    ) -> tuple[list[Prompt], Float[np.ndarray, "R2 P D"] | None]:
        """Numbers the pictures of all prompts and encodes each once; the table is None where there are none."""
        check_list(prompts, "prompts")
        known = count_prefixes(prefixes, (self.network.prefix_length, self.network.lm.config.embed_width))
        rows: dict[str | int, int] = {}
        pictures: list[Picture] = []

        def resolve(part: str | Image | Picture, index: int) -> str | Image:
            if isinstance(part, str):
                return check_text(part, index)
            if not isinstance(part, Image):
                name = name_picture(part, index)
                if name not in rows:
                    rows[name] = known + len(pictures)
                    pictures.append(part)
                part = Image(rows[name])
            elif not 0 <= part.row < known:
                raise UserError(f"prompt {index} has {part}, and prefixes has {known} rows; give the table with it")
            return Image(0) if self.blind else part

        resolved: list[Prompt] = []
        for index, prompt in enumerate(prompts):
            check_list(prompt, f"prompt {index}")
            resolved.append(tuple(resolve(part, index) for part in prompt))
        if not pictures:
            return resolved, prefixes
        encoded = self.embed_image(pictures)
        return resolved, encoded if prefixes is None else np.concatenate([prefixes, encoded])

    @functools.cached_property
    def _decoder(self) -> tuple[Any, Any]:
        """The language model and its parameters as the loop over tokens reads them fastest."""
        return prepare_decoding(self.network.lm, self.params["lm"])

    @functools.cached_property
    def _devices(self) -> int:
        """How many devices share the rows of a batch."""
        sharding = find_row_sharding(self.params)
        return 1 if sharding is None else sharding.mesh.shape["data"]

    def _put(self, rows: np.ndarray) -> np.ndarray | Array:
        """Cuts a batch over the devices."""
        return rows if self._devices == 1 else jax.device_put(rows, find_row_sharding(self.params))

    def _make_batches(self, prompts: Sequence[Prompt], *, new_tokens: int, apart: bool = True) -> list[PromptBatch]:
        """Batches prompts; `apart` allows what they begin with in common to be laid out once."""
        encoded = self._encode(prompts, new_tokens=new_tokens)
        if not apart:
            encoded = [prompt._replace(query_part=0, query_id=0) for prompt in encoded]
        return list(make_batches(encoded, batch_size=self.batch_size, devices=self._devices))

    def _encode(self, prompts: Sequence[Prompt], *, new_tokens: int) -> list[Encoded]:
        """Returns the ids of prompts; `check_room` refuses what is too long."""
        cached = functools.lru_cache(maxsize=65536)(self.tokenizer.encode)
        bos_id = self.tokenizer.bos_id if self.bos else None
        opening = open_row(bos_id, prompt_length=count_prompt(self.params))
        encode = functools.partial(encode_prompt, encode=cached, prefix_length=self.network.prefix_length)
        rows = [encode(prompt, opening=opening) for prompt in prompts]
        limit = self.network.lm.config.max_positions
        check_room(
            prompts, rows, new_tokens=new_tokens, limit=limit, measure=lambda parts: len(encode(parts, opening=()))
        )
        encoded = []
        for prompt, ids in zip(prompts, rows, strict=True):
            part = find_query(prompt)
            start = len(encode(prompt[:part], opening=opening)) if part else 0
            encoded.append(Encoded(prompt, ids, part, start) if start < len(ids) else Encoded(prompt, ids))
        return encoded

    def _embed(
        self, batch: PromptBatch, table: Float[np.ndarray, "R P D"] | None
    ) -> tuple[Float[Array, "B S D"], Bool[np.ndarray, "B S"], Beginning | None]:
        """Returns the embeddings and the mask of a batch's rows, and what they begin with."""

        def embed(rows: PromptRows, put: Callable[[np.ndarray], np.ndarray | Array]) -> Any:
            prefixes = None if table is None or not rows.images.size else put(table[rows.images])
            return _embed_prompts(self.network, self.params, put(rows.tokens), prefixes)

        beginning = None
        if batch.beginnings is not None and batch.owners is not None:
            beginning = Beginning(embed(batch.beginnings, np.asarray), batch.beginnings.mask, batch.owners)
        return embed(batch.rows, self._put), batch.rows.mask, beginning
