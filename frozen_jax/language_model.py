"""A pre-trained language model, loaded: config, parameters, module and tokenizer in one object.

Lives here: loading from a Hugging Face directory, a hub id or a GGUF file, and saving. Not here: the networks
(`models/`), the names of weights (`convert/`). Next in the data flow: `models/frozen.py`, or `decode.py`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError

from frozen_jax.convert.lm_weights import export_lm, import_lm
from frozen_jax.convert.safetensors_reader import INDEX, SINGLE, SafetensorsDirectory, read_json
from frozen_jax.convert.safetensors_writer import save_tensors
from frozen_jax.convert.tables import Params
from frozen_jax.errors import UserError
from frozen_jax.models.hf_config import token_field
from frozen_jax.models.layers import DType
from frozen_jax.models.lm import LMConfig, build_lm, lm_config_from_hf
from frozen_jax.models.masks import causal_mask, positions_from_mask
from frozen_jax.models.published import PUBLISHED
from frozen_jax.sums import SUMS, format_sums, verify_file, verify_sums
from frozen_jax.tokenizer import GENERATION, SAVED_FILES, Tokenizer
from frozen_jax.workdir import write_json_atomic, write_text_atomic

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "tokenizer.model")
"""What is fetched from a hub: no pickles, no code."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model with its weights.

    Attributes:
        config: hyperparameters.
        params: nested dict of arrays, in the dtype that was asked for.
        tokenizer: its tokenizer, or None where the directory has none.
        module: the network; `module.apply({"params": params}, …, method="stack")` and so on, see `models/lm.py`.
    """

    config: LMConfig
    params: Params
    tokenizer: Tokenizer | None
    module: nn.Module = field(repr=False)

    def logits(
        self, tokens: Int[Array | np.ndarray, "B S"], input_mask: Bool[Array | np.ndarray, "B S"] | None = None
    ) -> Float[Array, "B S V"]:
        """Returns next-token logits, f32.

        Args:
            tokens: ids in [0, V).
            input_mask: true where there is a token; None means everywhere. Padding may stand on either side.

        Raises:
            UserError: an id out of range, or more positions than the model has.
        """
        return self.logits_from_embeddings(self.embed(tokens), input_mask)

    def embed(self, tokens: Int[Array | np.ndarray, "B S"]) -> Float[Array, "B S D"]:
        """Returns token embeddings, the vectors beside which an image's prefix stands.

        Raises:
            UserError: an id out of range.
        """
        ids = np.asarray(tokens)
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if wrong.size:
            raise UserError(
                f"token id {wrong[0]} is outside the vocabulary [0, {self.config.vocab_size}) of this language model; "
                "use its own tokenizer, and replace negative ids of slots and padding"
            )
        embeddings: Array = _embed(self.module, self.params, jnp.asarray(ids, jnp.int32))
        return embeddings

    def logits_from_embeddings(
        self, embeddings: Float[Array | np.ndarray, "B S D"], input_mask: Bool[Array | np.ndarray, "B S"] | None = None
    ) -> Float[Array, "B S V"]:
        """Returns next-token logits, f32, of a sequence of embeddings: of words, images or both.

        Args:
            embeddings: as `embed` returns them.
            input_mask: true where there is a token or a prefix vector; None means everywhere.

        Raises:
            UserError: more positions than the model has, or embeddings of another width.
        """
        embeddings = jnp.asarray(embeddings)
        if embeddings.shape[-1] != self.config.embed_width:
            raise UserError(
                f"embeddings of width {embeddings.shape[-1]} do not fit this language model's {self.config.embed_width}"
            )
        limit = self.config.max_positions
        if limit and embeddings.shape[1] > limit:
            raise UserError(f"{embeddings.shape[1]} positions exceed the {limit} of this language model; use fewer")
        mask = jnp.ones(embeddings.shape[:2], bool) if input_mask is None else jnp.asarray(input_mask)
        logits: Array = _logits(self.module, self.params, embeddings, mask)
        return logits

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 that says whether two language models hold the same weights; see `fingerprint_params`."""
        return fingerprint_params(self.params)


@functools.partial(jax.jit, static_argnums=0)
def _embed(module: nn.Module, params: Params, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    return cast(Array, module.apply({"params": params}, tokens, method="embed"))


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    module: nn.Module, params: Params, embeddings: Float[Array, "B S D"], input_mask: Bool[Array, "B S"]
) -> Float[Array, "B S V"]:
    hidden, _ = module.apply(
        {"params": params},
        embeddings,
        positions=positions_from_mask(input_mask),
        mask=causal_mask(input_mask),
        method="stack",
    )
    return cast(Array, module.apply({"params": params}, hidden, method="logits"))


def fingerprint_params(params: Params) -> str:
    """Returns the SHA-256 over all parameters in the order of their paths: path, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def load_lm(
    directory_or_hub_id: str | Path,
    dtype: DType = jnp.float32,
    *,
    place: Callable[[Params], Params] = jax.device_put,
) -> LanguageModel:
    """Loads a language model.

    Args:
        directory_or_hub_id: a directory with config.json and safetensors, a .gguf file or a directory with one, or a
            name such as "gpt2" or "facebook/opt-125m" that a Hugging Face hub knows.
        dtype: dtype of parameters and computation: float32 or bfloat16.
        place: moves the tree from the host to devices; give one that uses shardings where a model exceeds one device.

    Returns:
        The model; its tokenizer is None where the directory has no tokenizer at all.

    Raises:
        UserError: nothing there, unreachable hub, unsupported config, damaged, missing, unexpected or misshapen
            weights, or a tokenizer of another model.
    """
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        raise UserError(
            f"dtype = {jnp.dtype(dtype).name} must be float32 or bfloat16: weights and sums need their range"
        )
    path = Path(directory_or_hub_id).expanduser()
    if not path.exists():
        path = download_model(str(directory_or_hub_id))
    try:
        raw, tensors, tokenizer = _open_weights(path)
        config = lm_config_from_hf(raw)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the language model only {config.vocab_size}; "
                "it is the tokenizer of another model, put the right one beside the weights"
            )
        params = import_lm(config, tensors, dtype=dtype)
    except UserError as error:
        raise UserError(f"language model {path}: {error}") from error
    return LanguageModel(config, place(params), tokenizer, build_lm(config, dtype=dtype))


def read_lm_config(directory_or_hub_id: str | Path) -> LMConfig:
    """Returns a language model's hyperparameters; its weights are not read and, from a hub, not fetched.

    Those in `models.published` need no hub; they may differ from the file in what changes no shape.

    Args:
        directory_or_hub_id: as for `load_lm`.

    Raises:
        UserError: nothing there, unreachable hub, or an unsupported config.
    """
    path = Path(directory_or_hub_id).expanduser()
    if not path.exists():
        if str(directory_or_hub_id) in PUBLISHED:
            return lm_config_from_hf(PUBLISHED[str(directory_or_hub_id)])
        path = download_model(str(directory_or_hub_id), files=("config.json",))
    try:
        gguf = find_gguf(path)
        if gguf is None:
            return lm_config_from_hf(read_json(path / "config.json"))
        from frozen_jax.convert.gguf_reader import read_gguf

        return lm_config_from_hf(read_gguf(gguf)[0])
    except UserError as error:
        raise UserError(f"language model {path}: {error}") from error


def save_lm(directory: str | Path, config: LMConfig, params: Params, tokenizer: Tokenizer | None) -> None:
    """Writes a directory that `load_lm` and transformers read: config.json, weights, tokenizer and their SHA256SUMS.

    With a tokenizer goes generation_config.json, which names all tokens that end a text. Each file is written beside
    its place and then moved there; config.json comes last, so that a directory that has it is complete. Where the
    weights in it were in shards, the list of these is removed; the shards stay, and nothing reads them.

    Raises:
        UserError: the directory cannot be written, or the disk is full.
    """
    directory = Path(directory)
    content = {**config.to_hf(), "dtype": next(iter(jax.tree.leaves(params))).dtype.name}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    written = [SINGLE]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(directory)
            ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": token_field(tokenizer.end_ids)}
            write_json_atomic(directory / GENERATION, ends)
            written += [*SAVED_FILES, GENERATION]
        save_tensors(directory / SINGLE, export_lm(config, params))
        (directory / INDEX).unlink(missing_ok=True)
        sums = format_sums([("config.json", text.encode()), *((name, directory / name) for name in written)])
        write_text_atomic(directory / SUMS, sums)
        write_text_atomic(directory / "config.json", text)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the language model cannot be saved in {directory}: {error}; free space or choose another directory"
        ) from error


def _open_weights(path: Path) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray], Tokenizer | None]:
    """Returns the content of config.json, lazily read tensors, and the tokenizer, of a directory or a GGUF file."""
    gguf = find_gguf(path)
    if gguf is None:
        verify_sums(path)
        return read_json(path / "config.json"), SafetensorsDirectory(path), _read_tokenizer(path)
    from frozen_jax.convert.gguf_reader import read_gguf

    verify_file(gguf)
    return read_gguf(gguf)


def find_gguf(path: Path) -> Path | None:
    """Returns the GGUF file that `path` is or holds; a directory with a config.json is not searched.

    Raises:
        UserError: it is another file, or holds several.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError("is a file; give a directory with config.json and model.safetensors, or a .gguf file")
    files = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise UserError(f"holds {len(files)} .gguf files; give the path of one of them, such as {files[0]}")
    return files[0] if files else None


def _read_tokenizer(directory: Path) -> Tokenizer | None:
    if any((directory / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        return Tokenizer.from_directory(directory)
    return None


def download_model(hub_id: str, *, files: Sequence[str] = HUB_FILES) -> Path:
    """Returns the local copy of a model on a Hugging Face hub, or of some files of it.

    Raises:
        UserError: it is neither there nor in the local cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    advice = f"download {', '.join(files)} of the model by hand into a directory and give that directory instead"
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(files)))
    except HFValidationError as error:
        raise UserError(
            f"{hub_id!r} is neither a directory or .gguf file that exists nor a hub id; {advice}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{hub_id!r} is no directory or .gguf file here, and the hub did not give it ({reason}); {advice}"
        ) from error
