"""Few-shot VQA questions per second, `python benchmarks/fewshot.py`.

    PYTHONPATH=. python benchmarks/fewshot.py --lm=gpt2 --shots=4 --questions=32 --peer=torch --json=fewshot.json

Each question is asked about a picture of its own, after the same shots (`evaluate.vqa.shot_choice=fixed`) and after
shots of its own, by `Model.generate`: with its batching, without tokenizer and encoder (a word is a token, pictures'
vectors are drawn). With `--peer=torch` transformers' `generate` (KV cache, no gradient) takes turns with ours: the same
weights, and the embeddings of the same prompts as one left-padded batch without a needless column, made beforehand.
`ratio` is ours / peer in questions per CPU-second, or per second on an accelerator, after the same shots;
`tokens_equal` says whether all tokens are the same, which float32 must give.
"""

from __future__ import annotations

import argparse
import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from frozen_jax.api import Model
from frozen_jax.data.images import ImageOptions
from frozen_jax.evaluate_settings import VQASettings
from frozen_jax.prompt import Image, Prompt, fill
from frozen_jax.prompt_batches import Encoded, make_batches

COLOURS, SHAPES = ("red", "blue", "green", "yellow", "black", "grey"), ("circle", "square", "triangle", "rectangle")
QUESTIONS = ("what shape is in the image?", "what color is the {shape}?", "is there a {colour} {shape} in the image?")


class WordTokenizer:
    """Every word and mark is a token; ids are read back as numbers, so that texts are equal where tokens are."""

    bos_id = eos_id = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Returns an id for each word."""
        return [zlib.crc32(word.encode()) % self.vocab_size for word in re.findall(r"\w+|[^\w ]", text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the ids."""
        return " ".join(map(str, ids))


def draw_prompts(options: argparse.Namespace, *, own_shots: bool) -> list[Prompt]:
    """Draws prompts in the words of easy-VQA; their pictures are numbered in order of appearance."""
    rng = np.random.default_rng(0)
    settings = VQASettings()
    rows = itertools.count()

    def draw(template: str, **fields: str) -> Prompt:
        question = QUESTIONS[rng.integers(len(QUESTIONS))].format(shape=rng.choice(SHAPES), colour=rng.choice(COLOURS))
        return fill(template, Image(next(rows)), question=question, **fields)

    def draw_shots() -> Prompt:
        answers = [str(rng.choice([*COLOURS, *SHAPES, "yes", "no"])) for _ in range(options.shots)]
        return sum((draw(settings.shot_format, answer=answer) for answer in answers), (settings.induction,))

    fixed = () if own_shots else draw_shots()
    return [(fixed or draw_shots()) + draw(settings.query_format) for _ in range(options.questions)]


def make_peer(
    options: argparse.Namespace, model: Model
) -> Callable[[list[Prompt], np.ndarray], Callable[[], list[str]]]:
    """Returns what makes transformers' greedy decoding of some prompts."""
    import torch

    from benchmarks import torch_peer

    torch.set_num_threads(options.cores)
    dtype = getattr(torch, options.dtype)
    lm = torch_peer.torch_lm(model.network.lm.config, model.params["lm"], dtype=dtype)
    lm = lm.to("cpu" if common.on_cpu() else "cuda")
    lm.generation_config.eos_token_id = None

    def prepare(prompts: list[Prompt], table: np.ndarray) -> Callable[[], list[str]]:
        whole = [Encoded(batch.parts, batch.ids) for batch in model._encode(prompts, new_tokens=options.words)]
        (batch,) = make_batches(whole, batch_size=len(whole), devices=1)
        embedded, mask, _ = model._embed(batch, table)
        first = int(mask.any(axis=0).argmax())
        embeddings = torch.tensor(np.asarray(embedded, np.float32)[:, first:], device=lm.device).to(dtype)
        seen = torch.tensor(mask[:, first:], device=lm.device).long()
        order = np.argsort(batch.numbers)

        def run() -> list[str]:
            tokens = torch_peer.decode_greedily(lm, embeddings, seen, words=options.words)
            return list(map(model.tokenizer.decode, tokens[order].tolist()))

        return run

    return prepare


def measure_questions(options: argparse.Namespace, model: Model, peer: Any, *, own_shots: bool) -> dict[str, Any]:
    """Times one kind of prompts."""
    prompts = draw_prompts(options, own_shots=own_shots)
    pictures = options.questions * (options.shots + 1)
    width = model.network.lm.config.embed_width
    table = 0.02 * np.random.default_rng(1).standard_normal((pictures, options.slots, width), np.float32)

    def run_ours() -> list[str]:
        return model.generate(prompts, max_new_tokens=options.words, stop=(), prefixes=table)

    variants: dict[str, Callable[[], list[str]]] = {"ours": run_ours}
    if peer is not None:
        variants["peer"] = peer(prompts, table)
    medians = common.measure(variants, rounds=options.rounds)
    lengths = [len(encoded.ids) for encoded in model._encode(prompts, new_tokens=options.words)]
    result = {"positions": [min(lengths), max(lengths)], "questions_per_s": options.questions / medians["ours"]}
    if peer is not None:
        result |= {
            "peer_questions_per_s": options.questions / medians["peer"],
            "ratio": medians["peer"] / medians["ours"],
            "tokens_equal": run_ours() == variants["peer"](),
        }
    return result


def main() -> None:
    """Reads the flags, measures, reports."""
    parser = common.make_parser(__doc__)
    parser.set_defaults(words=5)
    parser.add_argument("--shots", type=int, default=4, help="answered questions before each question")
    parser.add_argument("--questions", type=int, default=32, help="asked together")
    parser.add_argument("--peer", choices=["torch"])
    options = parser.parse_args()
    common.prepare(options)
    network = common.make_model(options)
    shapes = common.describe_params(network, image_size=64, dtype=options.dtype)
    params = common.draw_params({"lm": shapes["lm"]})
    tokenizer: Any = WordTokenizer(network.lm.config.vocab_size)
    model = Model(network, params, tokenizer, ImageOptions(size=224), batch_size=options.questions)
    peer = make_peer(options, model) if options.peer else None
    rows: dict[str, Any] = {
        f"{options.shots} {name} shots": measure_questions(options, model, peer, own_shots=name == "own")
        for name in ("fixed", "own")
    }
    if peer is not None:
        rows["ratio"] = rows[f"{options.shots} fixed shots"]["ratio"]
        rows["tokens_equal"] = all(row["tokens_equal"] for row in list(rows.values())[:2])
    common.report(options, common.describe_machine(options, peer=peer is not None), rows)


if __name__ == "__main__":
    main()
