from __future__ import annotations

import json
import os
import resource
import signal
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from frozen_jax.errors import UserError
from frozen_jax.language_model import LanguageModel, fingerprint_params, load_lm, save_lm
from frozen_jax.models.lm import build_lm
from frozen_jax.sums import SUMS
from frozen_jax.tokenizer import Tokenizer, train_bpe
from tests.models.lm_cases import CASES, FAST_COMPILE, GPT2, TOLERANCE, Pair, left_padded, pair

TEXTS = ["a red circle", "a blue square", "is it red?"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What transformers writes for a GPT-2."""
    pair("gpt2").torch_model.save_pretrained(tmp_path)
    return tmp_path


def torch_logits(model: Pair | Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(), position_ids=positions
        ).logits.numpy()


def test_directory_of_transformers_gives_its_logits(directory: Path) -> None:
    model = load_lm(directory)
    tokens, mask = left_padded(rows=2, length=8)
    logits = model.logits(tokens, mask)
    assert (logits.dtype, logits.shape) == (jnp.float32, (2, 8, 61))
    expected = torch_logits(pair("gpt2").torch_model, tokens, mask)
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(
        model.logits(tokens[:1]), model.logits(tokens[:1], np.ones((1, 8), bool)), atol=0, rtol=0
    )
    np.testing.assert_array_equal(model.logits_from_embeddings(model.embed(tokens), mask), logits)
    assert model.tokenizer is None
    assert model.config == pair("gpt2").config


@pytest.mark.parametrize("case", ["gpt2_by_layer", "opt_350m", "smollm3"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_saved_directory_is_read_by_us_and_by_transformers(tmp_path: Path, case: str, dtype: Any) -> None:
    source = pair(case)
    params = jax.tree.map(lambda x: x.astype(dtype), source.params)
    save_lm(tmp_path, source.config, params, None)
    model = load_lm(str(tmp_path), dtype)
    assert model.config == source.config
    assert model.fingerprint == fingerprint_params(params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens, mask = left_padded(rows=2, length=8)
    rounded = LanguageModel(source.config, jax.tree.map(lambda x: x.astype(jnp.float32), params), None, source.module)
    np.testing.assert_allclose(
        np.asarray(rounded.logits(tokens, mask))[mask], torch_logits(again, tokens, mask)[mask], atol=TOLERANCE, rtol=0
    )


def test_half_precision_file_is_converted(tmp_path: Path) -> None:
    source = pair("gpt2")
    save_lm(tmp_path, source.config, jax.tree.map(lambda x: x.astype(jnp.float16), source.params), None)
    model = load_lm(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(model.params["embed"]["embedding"], source.params["embed"]["embedding"], atol=1e-3)


def test_sharded_directory_is_the_same_model(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sharded = tmp_path_factory.mktemp("sharded")
    pair("gpt2").torch_model.save_pretrained(sharded, max_shard_size="40KB")
    assert not (sharded / "model.safetensors").exists()
    assert load_lm(sharded).fingerprint == load_lm(directory).fingerprint


def test_saved_over_shards_it_is_the_new_model_to_everybody(tmp_path: Path) -> None:
    source = pair("gpt2")
    source.torch_model.save_pretrained(tmp_path, max_shard_size="40KB")
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, source.params)
    save_lm(tmp_path, source.config, params, None)
    assert not list(tmp_path.glob("*.index.json"))
    assert load_lm(tmp_path).fingerprint == fingerprint_params(params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.transformer.wte.weight.detach().numpy(), params["embed"]["embedding"])


def test_parameters_are_placed_by_the_caller(directory: Path) -> None:
    seen = []

    def place(params: dict[str, Any]) -> dict[str, Any]:
        seen.append({type(leaf) for leaf in jax.tree.leaves(params)})
        return jax.device_put(params, jax.devices()[3])

    model = load_lm(directory, place=place)
    assert seen == [{np.ndarray}]
    assert {leaf.devices().pop() for leaf in jax.tree.leaves(model.params)} == {jax.devices()[3]}


def test_fingerprint_sees_one_bit_a_name_a_shape_and_a_dtype() -> None:
    params = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": np.ones(1, np.float32)}
    bit = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": np.nextafter(np.ones(1, np.float32), np.float32(2))}
    name = {"a": {"scale": params["a"]["kernel"]}, "b": params["b"]}
    shape = {"a": {"kernel": params["a"]["kernel"].T}, "b": params["b"]}
    dtype = {"a": {"kernel": params["a"]["kernel"].view(np.int32)}, "b": params["b"]}
    assert len({fingerprint_params(tree) for tree in (params, bit, name, shape, dtype)}) == 5
    reordered = {"b": jnp.asarray(params["b"]), "a": {"kernel": jnp.asarray(params["a"]["kernel"])}}
    assert fingerprint_params(reordered) == fingerprint_params(params)


def save_with_tokenizer(directory: Path) -> Tokenizer:
    """Saves a model of the size of a new tokenizer, which is returned."""
    tokenizer = train_bpe(TEXTS, vocab_size=270, special_tokens=["<|endoftext|>"])
    config = type(pair("gpt2").config).from_hf({**GPT2, "vocab_size": tokenizer.vocab_size})
    initialise = jax.jit(build_lm(config).init, compiler_options=FAST_COMPILE)
    params = initialise(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    save_lm(directory, config, params, tokenizer)
    return tokenizer


def test_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    tokenizer = save_with_tokenizer(tmp_path)
    loaded = load_lm(tmp_path)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert loaded.logits(np.asarray([loaded.tokenizer.encode(TEXTS[0])])).shape[-1] == tokenizer.vocab_size


def test_all_tokens_that_end_a_text_travel_too(tmp_path: Path) -> None:
    """As Qwen2-Instruct names them: one in config.json and tokenizer_config.json, all in generation_config.json."""
    save_with_tokenizer(tmp_path / "from")
    (tmp_path / "from" / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    (tmp_path / "from" / "SHA256SUMS").unlink()
    source = load_lm(tmp_path / "from")
    assert source.tokenizer is not None and source.tokenizer.end_ids == (0, 7)
    save_lm(tmp_path / "to", source.config, source.params, source.tokenizer)
    loaded = load_lm(tmp_path / "to")
    assert loaded.tokenizer is not None and loaded.tokenizer.end_ids == (0, 7)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "to")
    assert theirs.generation_config.eos_token_id == [0, 7]


def test_what_is_saved_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_with_tokenizer(tmp_path / "lm")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "lm").iterdir()} == dict.fromkeys(
        ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", SUMS),
        "0o640",
    )


def test_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    train_bpe(TEXTS, vocab_size=270, special_tokens=["<|endoftext|>"]).save(directory)
    with pytest.raises(UserError, match=r"tokenizer has 2\d\d tokens, the language model only 61; .* another model"):
        load_lm(directory)


def test_missing_weight_is_named_with_the_directory(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(UserError, match=rf"^language model {directory}: the weights lack h.2.attn.c_attn.bias"):
        load_lm(directory)


@pytest.mark.parametrize("field", ["n_embd", "n_inner", "n_positions", "vocab_size"])
@pytest.mark.parametrize("value", [2**40, 2**62])
def test_sizes_beyond_any_memory_are_compared_before_memory_is_taken(directory: Path, field: str, value: int) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError, match=rf"has shape .*config.json asks for .*{value}"):
        load_lm(directory)


def test_more_layers_than_tensors_are_refused_before_they_are_named(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "n_layer": 10**12}))
    with pytest.raises(UserError, match=r"hold \d+ tensors, too few for the 1000000000000 layers"):
        load_lm(directory)


def test_truncated_weights_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors .* not a complete safetensors file"):
        load_lm(directory)


def test_damaged_or_missing_config_is_named(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json is not readable JSON"):
        load_lm(directory)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is missing"):
        load_lm(directory)


@pytest.mark.parametrize("name", ["gpt2", "facebook/opt-125m"])
def test_unreachable_hub_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{name}.*the hub did not give it.*\*.safetensors.*into a directory"):
        load_lm(name)


def test_hub_id_is_fetched_without_pickles(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetch(repo_id: str, *, allow_patterns: list[str]) -> str:
        calls.append((repo_id, allow_patterns))
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(directory)
    assert load_lm("someone/gpt2").config == pair("gpt2").config
    assert calls == [("someone/gpt2", ["*.json", "*.safetensors", "*.txt", "tokenizer.model"])]


@pytest.mark.parametrize("name", ["/no/such/directory", "a/b/c", "with space"])
def test_what_is_neither_path_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="neither a directory or .gguf file that exists nor a hub id"):
        load_lm(name)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int8, jnp.float64])
def test_dtype_without_range_is_refused(directory: Path, dtype: Any) -> None:
    with pytest.raises(UserError, match=f"dtype = {jnp.dtype(dtype).name} must be float32 or bfloat16"):
        load_lm(directory, dtype)


def test_gguf_is_dispatched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frozen_jax.convert.lm_weights import export_lm

    source, calls = pair("llama"), []

    def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], None]:
        calls.append(path)
        return CASES["llama"], export_lm(source.config, source.params), None

    fake = types.SimpleNamespace(read_gguf=read_gguf)
    monkeypatch.setitem(sys.modules, "frozen_jax.convert.gguf_reader", fake)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    assert load_lm(file).fingerprint == load_lm(tmp_path).fingerprint == fingerprint_params(source.params)
    assert calls == [file, file]
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds 2 .gguf files"):
        load_lm(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.bin: is a file; give a directory"):
        load_lm(tmp_path / "model.bin")


@pytest.fixture
def model() -> LanguageModel:
    source = pair("gpt2")
    return LanguageModel(source.config, source.params, None, source.module)


@pytest.mark.parametrize("token", [-1, 61])
def test_token_outside_the_vocabulary_is_refused(model: LanguageModel, token: int) -> None:
    with pytest.raises(UserError, match=rf"token id {token} is outside the vocabulary \[0, 61\)"):
        model.logits(np.asarray([[1, token]]))


def test_too_many_positions_are_refused(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="49 positions exceed the 48"):
        model.logits(np.ones((1, 49), np.int32))


def test_embeddings_of_another_width_are_refused(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="width 16 do not fit this language model's 32"):
        model.logits_from_embeddings(np.zeros((1, 2, 16), np.float32))


def test_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The system itself stops the writing, as on a full disk; safetensors reports that with an error of its own."""
    source = pair("gpt2")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
        with pytest.raises(UserError, match="File too large.*; free space or choose another directory"):
            save_lm(tmp_path / "new", source.config, source.params, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, before)
    assert list((tmp_path / "new").iterdir()) == []


def test_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be saved"):
        save_lm(tmp_path / "taken", pair("gpt2").config, pair("gpt2").params, None)
