"""From a config to towers: loads or draws the language model, builds encoder and prefix. Next: `train.py`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.adapters import adapt_lm
from frozen_jax.config import Config
from frozen_jax.errors import UserError
from frozen_jax.language_model import LanguageModel, fingerprint_params, load_lm
from frozen_jax.models.bert import BERTConfig
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.fusion import Fusion
from frozen_jax.models.generator import Generator, GeneratorConfig
from frozen_jax.models.lm import LMConfig, build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.retrieval import RetrievalHead
from frozen_jax.models.vision import build_vision
from frozen_jax.optim import list_label_rules
from frozen_jax.pretrained_vision import load_vision
from frozen_jax.quantise import quantise_lm
from frozen_jax.state import LabelRules, Params, match_rules, split
from frozen_jax.tokenizer import Tokenizer

PACKAGE = Path(__file__).parent


class Towers(NamedTuple):
    """Everything that a run builds from its config before it meets data.

    Attributes:
        model: the modules.
        trainable: float32 parameters that train, freshly drawn or pre-trained.
        frozen: parameters that never change, in the compute dtype.
        rules: freezing rules that made the split.
        tokenizer: of the language model.
        fingerprint: SHA-256 of the language model as it was loaded; "" for one drawn at random.
        vision_fingerprint: SHA-256 of what never changes of the vision encoder, such as all of it with
            `vision.freeze`; "" where everything trains.
    """

    model: FrozenModel
    trainable: Params
    frozen: Params
    rules: LabelRules
    tokenizer: Tokenizer
    fingerprint: str
    vision_fingerprint: str


def choose_dtype(name: str, *, platform: str = "") -> np.dtype:
    """Resolves "auto": bfloat16 on accelerators, float32 on a CPU, which computes bfloat16 slowly.

    Args:
        name: `config.lm.dtype`.
        platform: "cpu", "gpu", "tpu"; "" is that of the devices here.
    """
    if name == "auto":
        name = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return np.dtype(jnp.dtype(name))


def resolve_dtype(config: Config) -> Config:
    """Says in a config what "auto" means here, so that a run's `config.json` holds for other devices too: what was
    trained in bfloat16 on a TPU is loaded in bfloat16 on a CPU, through the same language model bit for bit."""
    compute: Any = str(choose_dtype(config.lm.dtype))
    return dataclasses.replace(config, lm=dataclasses.replace(config.lm, dtype=compute))


def build_model(config: Config, lm_config: LMConfig, *, compute: np.dtype, embedding_rms: float) -> FrozenModel:
    """Builds the modules, without parameters.

    Args:
        config: the run.
        lm_config: of the language model that the run loads or draws.
        compute: dtype of computation.
        embedding_rms: root mean square of the language model's word embeddings.

    Raises:
        UserError: an option that does not fit.
    """
    # A text beyond the last position would silently share its embedding. Each text of a packed row has positions of its
    # own; its share of the row is taken for its length here, and `packed_row` cuts the few that are longer.
    data = config.data
    longest = data.max_tokens // data.pack * (2 if data.pair_probability else 1)
    if longest > lm_config.max_positions:
        raise UserError(
            f"config.data.max_tokens is {data.max_tokens}, texts of up to {longest} tokens, and the language model has "
            f"{lm_config.max_positions} positions; lower it"
        )
    generator = build_generator(config, lm_config, compute=compute, embedding_rms=embedding_rms)
    queries = generator.config.queries if generator is not None else 0
    if longest + queries > lm_config.max_positions:
        raise UserError(
            f"config.generator.queries is {queries}, behind texts of up to {longest} tokens, and the language model "
            f"has {lm_config.max_positions} positions; lower it or data.max_tokens"
        )
    if isinstance(lm_config, BERTConfig) and not config.fusion.kind:
        raise UserError(f"config.lm.path={config.lm.path!r} is a BERT, which predicts no words; set fusion.kind")
    lm = build_lm(lm_config, dtype=compute, remat=config.lm.remat)
    if not config.vision.name:
        return FrozenModel(lm, generator=generator)
    vision = build_vision(config.vision.name, dtype=compute, **config.vision.options)
    fusion = config.fusion
    if fusion.kind:
        if not fusion.classes:
            raise UserError("config.fusion.classes is (): the network has an output for each; name them")
        made = Fusion(fusion.kind, fusion.classes, fusion.width, dropout=fusion.dropout, dtype=compute)
        return FrozenModel(lm, vision, fusion=made)
    prefix = Prefix(
        length=config.prefix.length,
        width=lm_config.embed_width,
        embedding_rms=embedding_rms * config.prefix.scale,
        layer_norm=config.prefix.layer_norm,
        feature_norm=config.prefix.feature_norm,
        dropout=config.prefix.dropout,
        dtype=compute,
        kind=config.prefix.kind,
        hidden=config.prefix.hidden,
        layers=config.prefix.layers,
        heads=config.prefix.heads,
    )
    if config.prefix.kind == "patches" and config.prefix.length != (places := count_places(config, vision)):
        raise UserError(
            f"config.prefix.length is {config.prefix.length}, and with prefix.kind='patches' it is the number of "
            f"places that {config.vision.name} has at data.image.size={config.data.image.size}: set it to {places}"
        )
    if not config.retrieval.weight:
        return FrozenModel(lm, vision, prefix)
    head = RetrievalHead(config.retrieval.width, token_width=lm_config.embed_width, embedding_rms=embedding_rms)
    return FrozenModel(lm, vision, prefix, head)


def count_places(config: Config, vision: nn.Module) -> int:
    """Returns M, the vectors that an encoder has of the places of a picture of `data.image.size`."""
    pictures = jnp.zeros((1, config.data.image.size, config.data.image.size, 3), jnp.uint8)
    shown = jax.eval_shape(lambda rng: vision.init_with_output(rng, pictures)[0].tokens, jax.random.key(0))
    return int(shown.shape[1])


def build_generator(
    config: Config, lm_config: LMConfig, *, compute: np.dtype, embedding_rms: float
) -> Generator | None:
    """Builds the picture generator, without parameters; None where the config names none. Arguments: `build_model`."""
    settings = config.generator
    if not settings.name:
        return None
    sizes = GeneratorConfig(
        image_size=config.data.image.size,
        patch_size=settings.patch_size,
        channels=settings.channels,
        width=settings.width,
        queries=settings.queries,
        embed_width=lm_config.embed_width,
        lm_width=lm_config.embed_width,
        embedding_rms=embedding_rms,
    )
    return Generator(sizes, compute)


def resolve_path(path: str) -> str:
    """Resolves `package:NAME` to a directory that ships with frozen_jax; other paths and hub ids stay as they are."""
    if not path.startswith("package:"):
        return path
    models = {entry.parent.name: entry.parent for entry in (PACKAGE / "assets").glob("*/config.json")}
    directory = models.get(path.removeprefix("package:"))
    if directory is None:
        there = ", ".join(sorted(models)) or "none"
        raise UserError(f"{path!r}: no such model in the package; there: {there}")
    return str(directory)


def build_towers(config: Config, *, tokenizer: Tokenizer | None = None) -> Towers:
    """Loads, draws and splits all parameters.

    The frozen language model keeps its compute dtype; what trains is float32.

    Args:
        config: the run.
        tokenizer: from `restore.open_tokenizer`, for a language model that brings none: where `config.lm.path` is "".

    Raises:
        UserError: the language model cannot be loaded, or an option does not fit.
    """
    compute = choose_dtype(config.lm.dtype)
    lm_trains = config.lm.mode != "frozen"
    lm = _load(config, tokenizer, dtype=np.dtype(np.float32) if lm_trains else compute)
    if lm.tokenizer is None:
        raise UserError(f"config.lm.path={config.lm.path!r} has no tokenizer; put tokenizer.json beside the weights")
    # A fusion reads that token, and `[RET]` takes its place: without it, that of a text's last word.
    needs_end = "fusion.kind" if config.fusion.kind else "retrieval.weight" if config.retrieval.weight else ""
    if needs_end and lm.tokenizer.eos_id is None:
        raise UserError(
            f"config.{needs_end}: the tokenizer of {config.lm.path!r} has no token that ends a text; add one"
        )
    root = jax.random.key(config.seed)
    lm_rng, vision_rng = jax.random.split(root)
    lm_params = lm.params
    if config.lm.mode == "scratch":
        lm_params = jax.jit(FrozenModel(build_lm(lm.config, dtype=compute)).init_lm)(lm_rng)["lm"]
    if config.adapts_lm:
        lm_params = adapt_lm(lm_rng, lm_params, lora_rank=config.lm.lora_rank, settings=config.adaptation)
    table = jnp.asarray(lm_params["embed"]["embedding"], jnp.float32)
    rms = float(jnp.sqrt(jnp.mean(jnp.square(table))))
    model = build_model(config, lm.config, compute=compute, embedding_rms=rms)
    draw = jax.jit(functools.partial(model.init_vision, image_size=config.data.image.size))
    draw_generator = jax.jit(model.init_generator)
    params = {"lm": lm_params, **draw(vision_rng), **draw_generator(jax.random.fold_in(root, 2))}
    if config.vision.path and model.vision is not None:
        params["vision"] = load_vision(config.vision.path, model.vision)
    rules = list_label_rules(params, lm_trains=lm_trains, vision_trains=not config.vision.freeze)
    trainable, frozen = split(params, match_rules(params, rules, what="freezing"))
    return Towers(
        model=model,
        trainable=trainable,
        frozen=frozen,
        rules=rules,
        tokenizer=lm.tokenizer,
        fingerprint=lm.fingerprint if config.lm.path else "",
        vision_fingerprint=fingerprint_params(frozen["vision"]) if "vision" in frozen else "",
    )


def _keep_on_host(params: Params) -> Params:
    """A language model larger than one device goes to all of them in parts, by `sharding.put_params`."""
    return params


def _load(config: Config, tokenizer: Tokenizer | None, *, dtype: np.dtype) -> LanguageModel:
    if config.lm.path:
        place = quantise_lm if config.lm.weights == "int8" else _keep_on_host
        return load_lm(resolve_path(config.lm.path), dtype=dtype, place=place)
    lm_config = lm_config_from_hf(config.lm.architecture)
    return LanguageModel(lm_config, {}, tokenizer, build_lm(lm_config))
