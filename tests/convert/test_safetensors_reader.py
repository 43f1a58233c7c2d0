from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from frozen_jax.convert.safetensors_reader import INDEX, SINGLE, SafetensorsDirectory
from frozen_jax.errors import UserError

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(4, ml_dtypes.bfloat16),
    "c": np.ones((2, 2), np.float16),
}


def write_sharded(directory: Path, weight_map: object) -> None:
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, directory / "first.safetensors")
    save_file({"c": TENSORS["c"]}, directory / "second.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


SHARDS = {"a": "first.safetensors", "b": "first.safetensors", "c": "second.safetensors"}


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_names_values_and_dtypes(tmp_path: Path, sharded: bool) -> None:
    if sharded:
        write_sharded(tmp_path, SHARDS)
    else:
        save_file(TENSORS, tmp_path / SINGLE)
    source = SafetensorsDirectory(tmp_path)
    assert sorted(source) == ["a", "b", "c"]
    assert len(source) == 3
    for name, tensor in TENSORS.items():
        assert source[name].dtype == tensor.dtype
        np.testing.assert_array_equal(source[name], tensor)
    with pytest.raises(KeyError):
        source["d"]


def test_a_single_file_counts_beside_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    save_file({"a": TENSORS["a"] + 1}, tmp_path / SINGLE)
    source = SafetensorsDirectory(tmp_path)
    assert list(source) == ["a"]
    np.testing.assert_array_equal(source["a"], TENSORS["a"] + 1)


@pytest.mark.parametrize("keep", [0, 4, 60, 0.99])
def test_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    whole = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"model.safetensors \(\d+ bytes\) is not a complete safetensors file.*again"):
        SafetensorsDirectory(tmp_path)


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / "second.safetensors").write_bytes((tmp_path / "second.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match="second.safetensors .* is not a complete safetensors file"):
        SafetensorsDirectory(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / "second.safetensors").unlink()
    with pytest.raises(UserError, match="second.safetensors is missing"):
        SafetensorsDirectory(tmp_path)


def test_tensor_missing_in_its_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, {**SHARDS, "c": "first.safetensors"})
    with pytest.raises(UserError, match="says that c is in first.safetensors, which lacks it"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", 3])
def test_shard_outside_the_directory_is_refused(tmp_path: Path, shard: object) -> None:
    write_sharded(tmp_path, {"a": shard})
    with pytest.raises(UserError, match="must be a file name beside it"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"weight_map": [1]}'])
def test_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match=f"{INDEX} .*download it again"):
        SafetensorsDirectory(tmp_path)


def test_pickle_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UserError, match=r"pytorch_model.bin only, a pickle.*save_pretrained"):
        SafetensorsDirectory(tmp_path)


def test_empty_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has neither model.safetensors nor"):
        SafetensorsDirectory(tmp_path)


def test_number_format_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    """A file with 8-bit floats: the header is fine, the tensor is not for us."""
    header = json.dumps({"a": {"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    source = SafetensorsDirectory(tmp_path)
    try:
        assert source["a"].dtype.name not in ("float32", "float16", "bfloat16")
    except UserError as error:
        assert "tensor a cannot be read" in str(error)
