"""Is an exported directory the model that was exported? Read back by `frozen_jax`, bit for bit, and run in PyTorch.

PyTorch and transformers are asked for only here, and only if they are installed; the code that runs in them is the
`modeling_frozen.py` that ships with this package.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from frozen_jax.api import Model, PromptParts
from frozen_jax.batch import PAD, open_row
from frozen_jax.decode import DecodeConfig, generate
from frozen_jax.errors import UserError
from frozen_jax.export.read import load_export
from frozen_jax.export.write import CLASS, MODELING
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.prompt import Image, encode_prompt, lay_out
from frozen_jax.state import flatten

TOLERANCE = 1e-4
"""Largest difference between logits, times their standard deviation where that is above 1."""

NEW_TOKENS = 8


class Comparison(NamedTuple):
    """How far two models are apart.

    Attributes:
        logit_difference: the largest, over all positions of all prompts.
        deviation: standard deviation of the logits.
        equal_texts: prompts after which both write the same tokens.
        prompts: that were compared.
    """

    logit_difference: float
    deviation: float
    equal_texts: int
    prompts: int


def check_round_trip(model: Model, directory: Path) -> None:
    """Reads an export back and compares every parameter bit by bit.

    Raises:
        RuntimeError: they differ, which is a defect of this package.
    """
    read = flatten(load_export(directory, dtype_name="float32").params)
    written = flatten(model.params)
    different = [path for path in {*read, *written} if path not in read or path not in written]
    different += [path for path in read if path in written and not _same_bits(read[path], written[path])]
    if different:
        raise RuntimeError(f"{directory}: read back, {len(different)} parameters differ, such as {different[0]}")


def _same_bits(one: Any, other: Any) -> bool:
    a, b = np.asarray(one), np.asarray(other)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def has_torch() -> bool:
    """Whether PyTorch and transformers are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def import_modeling(path: Path = MODELING) -> ModuleType:
    """Imports a `modeling_frozen.py` by its path."""
    spec = importlib.util.spec_from_file_location("modeling_frozen", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # transformers looks a class's file up there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # beside an export there is nothing to be written
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def sample_prompts(model: Model) -> list[list[Any]]:
    """Returns prompts of every kind: text, a picture, several pictures among words, of different lengths."""
    rng = np.random.default_rng(0)
    shapes = [(40, 60, 3), (64, 24, 3), (33, 33, 3)]
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    pictures[0][:, :, 0] = 230  # something red
    first, second, third = pictures
    return [
        [first],
        [second, " a"],
        [" the", first, " is a red", second, " is the", third, " one"],
        [third, first],
        [" a small picture of the"],
    ]


def compare_with_torch(model: Model, directory: Path, *, language_model: Any = None) -> Comparison:
    """Loads an export in PyTorch and runs both models on the same prompts.

    Raises:
        UserError: logits or greedy tokens differ, or PyTorch cannot load the language model that the export names.
    """
    modeling = import_modeling(directory / MODELING.name)
    try:
        torch_model = getattr(modeling, CLASS).from_pretrained(directory, language_model=language_model)
    except (OSError, ValueError) as error:  # of the language model that an export names
        raise UserError(f"PyTorch cannot load the language model of this run ({error}); export it too") from error
    processor = modeling.FrozenProcessor.from_pretrained(directory)
    result = compare(model, torch_model, processor, sample_prompts(model))
    if result.logit_difference > TOLERANCE * max(1.0, result.deviation) or result.equal_texts < result.prompts:
        raise UserError(
            f"PyTorch disagrees: logits differ by {result.logit_difference:.1e} (standard deviation "
            f"{result.deviation:.1e}), {result.equal_texts} of {result.prompts} greedy texts are equal; nothing was "
            "written: report this with the versions of torch and transformers"
        )
    return result


def compare(
    model: Model, torch_model: Any, processor: Any, prompts: Sequence[PromptParts], *, length: int = 0
) -> Comparison:
    """Runs both models on prompts as one batch: all logits, then `NEW_TOKENS` greedy tokens, never ended early.

    Args:
        model: in float32.
        torch_model: `FrozenForConditionalGeneration`.
        processor: its `FrozenProcessor`.
        prompts: text and pictures.
        length: positions to pad to here, where several batches are to share their compiled shapes.
    """
    import torch

    inputs = processor(prompts)
    with torch.no_grad():
        expected = torch_model(**inputs).logits.float().numpy()
    theirs = torch_model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None).numpy()
    with jax.default_matmul_precision("highest"):
        tokens, prefixes = _lay_out(model, prompts, length)
        logits, embeddings = _forward(model.network, model.params, tokens, prefixes)
        config = DecodeConfig(NEW_TOKENS)
        made = generate(model.network.lm, model.params["lm"], embeddings, tokens != PAD, config=config)
    longest = expected.shape[1]
    mask = (tokens != PAD)[:, -longest:]
    if not np.array_equal(mask, inputs["attention_mask"].numpy().astype(bool)):
        raise UserError("PyTorch disagrees: prompts have other lengths there; report this with its tokenizer.json")
    difference = float(np.abs(np.asarray(logits)[:, -longest:] - expected)[mask].max())
    equal = int((np.asarray(made.tokens) == theirs).all(axis=1).sum())
    return Comparison(difference, float(expected[mask].std()), equal, len(prompts))


def _lay_out(model: Model, prompts: Sequence[PromptParts], length: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns left-padded tokens [B, S] and, where there are pictures, each row's vectors [B, I, P, D]."""
    table = model.embed_image([part for prompt in prompts for part in prompt if not isinstance(part, str | Image)])
    numbers = iter(range(len(table)))
    parts = [tuple(part if isinstance(part, str) else Image(next(numbers)) for part in prompt) for prompt in prompts]
    opening = open_row(model.tokenizer.bos_id if model.bos else None, prompt_length=0)
    rows = [
        encode_prompt(prompt, encode=model.tokenizer.encode, prefix_length=model.network.prefix_length, opening=opening)
        for prompt in parts
    ]
    laid = lay_out(rows, parts, length=max(length, *map(len, rows)))
    return laid.tokens, table[laid.images] if laid.images.size else None


@functools.partial(jax.jit, static_argnums=0)
def _forward(network: FrozenModel, params: Any, tokens: jax.Array, prefixes: Any) -> tuple[jax.Array, jax.Array]:
    """Returns logits [B, S, V] and the embeddings [B, S, D] that they come from."""
    embeddings = network.embed(params, tokens, prefixes)
    hidden = network.run_lm(params, embeddings, (tokens != PAD).astype(np.int32))
    return network.logits(params, hidden), embeddings
