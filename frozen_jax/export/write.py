"""A trained model as a directory: for PyTorch, for others' encoders, or as a StableHLO program. The tool calls this.

Everything is written into a directory beside the wanted one, which takes its place by a rename when all is done and
checked: a directory under the wanted name is complete. The counterpart for reading: `read.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from frozen_jax.adapters import widen_lm
from frozen_jax.api import Model
from frozen_jax.build import PACKAGE, resolve_path
from frozen_jax.convert.lm_weights import export_lm
from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.safetensors_writer import save_tensors
from frozen_jax.convert.tables import export_tensors
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.export.layout import (
    CONFIG,
    DIGESTS,
    MODEL_TYPE,
    PREPROCESSOR,
    WEIGHTS,
    describe_vision,
    fingerprint_tensors,
    name_tensors,
)
from frozen_jax.language_model import load_lm
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.hf_config import token_field
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.resnet import ResNet
from frozen_jax.models.vit import ViT
from frozen_jax.state import Params, flatten
from frozen_jax.sums import digest_file
from frozen_jax.tokenizer import GENERATION
from frozen_jax.workdir import write_json_atomic, write_text_atomic

MODELING = PACKAGE / "assets" / "pytorch" / "modeling_frozen.py"
CLASS = "FrozenForConditionalGeneration"
PROGRAM = "encode_images.stablehlo"

PREFIX_KINDS = ("linear", "mlp")
"""Those that the PyTorch side and `convert/prefix.py` have."""


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Gives a directory to fill, which becomes `out` if the body succeeds and is removed otherwise.

    Raises:
        UserError: `out` exists and is not an empty directory, is no possible name, or the disk is full or read-only.
    """
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"--out={out}: exists and is not empty; name a new directory, nothing is overwritten")
        partial.mkdir(parents=True)
        yield partial
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--out={out}: cannot be written ({error}); free space or name another directory") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def widen(model: Model, *, lm_path: str | None = None) -> Model:
    """Returns the model in float32, on the host: the very weights it has, int8 kernels and adapters multiplied out.

    Args:
        model: of a run.
        lm_path: where its language model is published; it is taken from there, as it was before a run in bfloat16
            rounded it.

    Raises:
        UserError: it was trained on text alone, or another language model is at `lm_path`.
    """
    prefix, known = model.network.prefix, " and ".join(PREFIX_KINDS)
    if prefix is not None and prefix.kind not in PREFIX_KINDS:
        raise UserError(
            f"this run has prefix.kind={prefix.kind!r}, and --format=pytorch knows {known} alone; use the workdir "
            "itself, --format=stablehlo, or train with one of these"
        )
    wide = widen_vision(model)
    network = dataclasses.replace(wide.network, lm=model.network.lm.clone(dtype=jnp.float32))
    lm_params = widen_lm(model.params["lm"]) if lm_path is None else _read_published(lm_path, model.params["lm"])
    return dataclasses.replace(wide, network=network, params={**wide.params, "lm": lm_params})


def widen_vision(model: Model) -> Model:
    """Returns the model with its encoder and its prefix alone, of any kind, in float32, on the host.

    Raises:
        UserError: it was trained on text alone, or it names classes.
    """
    network = model.network
    if network.fusion is not None:
        raise UserError("this run names classes by config.fusion; what is exported reads pictures into words")
    if network.vision is None or network.prefix is None:
        raise UserError(
            "this run trained a language model on text alone; save that with frozen_jax.language_model.save_lm"
        )
    vision, prefix = (part.clone(dtype=jnp.float32) for part in (network.vision, network.prefix))
    # A head that finds pictures by texts has no place in an export.
    wide = FrozenModel(network.lm, vision, cast(Prefix, prefix))
    host = jax.device_get({part: model.params[part] for part in ("vision", "prefix")})
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), host)
    return dataclasses.replace(model, network=wide, params=params)


def _read_published(path: str, computed: Params) -> Params:
    """Returns a language model in float32, if what a run computed with is the same one in the run's dtype."""
    published = load_lm(resolve_path(path), place=lambda params: params).params
    here, there = flatten(jax.device_get(computed)), flatten(published)
    if here.keys() != there.keys() or any(
        there[name].astype(leaf.dtype).tobytes() != leaf.tobytes() for name, leaf in here.items()
    ):
        raise UserError(
            f"--no_lm: the language model {path} is not the one that this run was trained with; put that one there, or "
            "export with the language model (without --no_lm)"
        )
    return published


def write_pytorch(
    model: Model, directory: Path, *, card: str, lm_path: str | None = None, lm_dtype: str = "float32"
) -> None:
    """Fills a directory that transformers, by the code in it, and `frozen_jax.load` read.

    Args:
        model: in float32, from `widen` with the same `lm_path`.
        directory: exists and is empty.
        card: text of README.md.
        lm_path: the language model is left out and referred to by this directory or hub id.
        lm_dtype: in which `frozen_jax.load` will hold the language model and compute.
    """
    network, tokenizer = model.network, model.tokenizer
    assert network.prefix is not None and network.vision is not None
    lm_config = network.lm.config
    reference = None
    if lm_path is not None:
        sha256 = fingerprint_tensors(export_lm(lm_config, model.params["lm"]))
        reference = {"path": lm_path, "sha256": sha256}
    config = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASS],
        "auto_map": {
            "AutoConfig": "modeling_frozen.FrozenConfig",
            "AutoModel": f"modeling_frozen.{CLASS}",
            "AutoModelForImageTextToText": f"modeling_frozen.{CLASS}",
        },
        "dtype": "float32",
        "lm_dtype": lm_dtype,
        "text_config": lm_config.to_hf(),
        "vision_config": describe_vision(network.vision),
        "prefix_config": {
            "length": network.prefix.length,
            "layer_norm": network.prefix.layer_norm,
            "feature_norm": network.prefix.feature_norm,
            "embedding_rms": network.prefix.embedding_rms,
            "kind": network.prefix.kind,
            "hidden": network.prefix.hidden,
        },
        "language_model": reference,
        "blind": model.blind,
    }
    pictures = {
        **dataclasses.asdict(model.images),
        "image_seq_length": network.prefix.length,
        "add_bos": model.bos and tokenizer.bos_id is not None,
    }
    eos = tokenizer.eos_id
    generation = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": token_field(tokenizer.end_ids),
        "pad_token_id": 0 if eos is None else eos,
        "max_new_tokens": 20,
    }
    tensors = name_tensors(network, model.params, with_lm=reference is None)
    save_tensors(directory / WEIGHTS, tensors)
    tokenizer.save(directory)
    write_json_atomic(directory / CONFIG, config)
    write_json_atomic(directory / PREPROCESSOR, pictures)
    write_json_atomic(directory / GENERATION, generation)
    shutil.copyfile(MODELING, directory / MODELING.name)
    write_text_atomic(directory / "README.md", card)
    write_digests(directory)


def write_encoder(model: Model, directory: Path, *, layout: str) -> None:
    """Fills a directory with the vision encoder alone, under its publisher's names.

    Args:
        model: in float32, from `widen_vision`.
        directory: exists and is empty.
        layout: "torchvision" (ResNet) or "clip" (CLIP's vision transformer, with the config.json that transformers
            wants).

    Raises:
        UserError: the encoder is of another kind.
    """
    encoder = model.network.vision
    if layout == "torchvision" and isinstance(encoder, ResNet):
        table = resnet_table(encoder)
    elif layout == "clip" and isinstance(encoder, ViT) and encoder.config.family == "clip":
        table = vit_table(encoder.config)
        write_json_atomic(directory / CONFIG, _describe_clip(encoder))
    else:
        needed = "a ResNet (vision.name 'resnet50')" if layout == "torchvision" else "a vit of the family clip"
        raise UserError(
            f"--format={layout} is for {needed}; this model has another encoder: use --format=pytorch, whose "
            "model.safetensors has it under 'vision.'"
        )
    save_tensors(directory / WEIGHTS, export_tensors(table, model.params["vision"]))
    write_digests(directory)


def _describe_clip(encoder: ViT) -> dict[str, Any]:
    """Returns the config.json of transformers' `CLIPVisionModel`, or of the one with a projection."""
    config = encoder.config
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModelWithProjection" if config.projection_width else "CLIPVisionModel"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_epsilon,
        "projection_dim": config.projection_width or config.width,
        "dtype": "float32",
    }


def write_stablehlo(model: Model, directory: Path) -> None:
    """Fills a directory with encoder and prefix as one program, weights inside, for CPU, GPU and TPU.

    `jax.export.deserialize(bytearray(bytes)).call(images)` runs it: uint8[b, size, size, 3] → float32[b, P, D]. Every
    picture is black to the program of a blind run. `model` is in float32, from `widen_vision`.
    """
    network, size = model.network, model.images.size
    params = jax.device_put({part: model.params[part] for part in ("vision", "prefix")})

    def encode(images: jax.Array) -> jax.Array:
        seen = jnp.zeros_like(images) if model.blind else images
        return network.embed_images(params, seen[:, None])[:, 0]

    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(encode), platforms=("cpu", "cuda", "tpu"))(shape)
    (directory / PROGRAM).write_bytes(exported.serialize())
    write_digests(directory)


def write_digests(directory: Path) -> None:
    """Writes the SHA-256 of every file in it, of those in folders too, into `digests.json`."""
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    write_json_atomic(directory / DIGESTS, {"sha256": {name: digest_file(directory / name) for name in names}})
