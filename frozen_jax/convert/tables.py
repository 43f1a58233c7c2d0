"""One table per family between our parameter paths and the tensor names of published files, read both ways.

Lives here: what a table is, and import and export through it. The tables: `convert/gpt2.py`, `opt.py`, `llama.py`;
where tensors come from: `safetensors_reader.py`, `gguf_reader.py`. Next in the data flow:
`frozen_jax/language_model.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from frozen_jax.errors import UserError

Params: TypeAlias = dict[str, Any]
"""Nested dict of arrays."""

LAYER = "{layer}"
"""Stands for the layer's number in the names of tensors that we hold stacked over layers."""

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Rule:
    """One of our parameters and the tensor, or the tensors of all layers, that it is.

    Attributes:
        path: our path, with "/" between its parts.
        name: the tensor's name without the family's prefix; with LAYER in it, there is one tensor per layer.
        shape: our shape, without the leading axis of layers.
        torch_shape: the tensor's shape; ours up to a transposition and a reshape.
        transposed: the tensor is a matrix [out, in] and ours is [in…, out…].
    """

    path: str
    name: str
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]
    transposed: bool = False

    def __post_init__(self) -> None:
        if math.prod(self.shape) != math.prod(self.torch_shape) or (self.transposed and len(self.torch_shape) != 2):
            raise ValueError(f"rule for {self.path}: {self.torch_shape} cannot become {self.shape}")

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a tensor of `torch_shape` in our layout."""
        return (tensor.T if self.transposed else tensor).reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns one layer's array of `shape` in the file's layout, contiguous."""
        if self.transposed:
            return np.ascontiguousarray(array.reshape(self.torch_shape[::-1]).T)
        return np.ascontiguousarray(array.reshape(self.torch_shape))


@dataclass(frozen=True)
class Table:
    """All rules of one model, and how the names in its files may vary.

    Attributes:
        rules: one per parameter of ours.
        layers: L.
        prefixes: what may stand before the names in files; the first is written, all are read.
        unprefixed: names that never have a prefix.
        buffers: pattern of names (without prefix) of tensors that older versions saved and that hold no weights.
        tied: the name (without prefix) that some files hold a second copy under, and the name of what it copies.
    """

    rules: tuple[Rule, ...]
    layers: int
    prefixes: tuple[str, ...]
    unprefixed: tuple[str, ...]
    buffers: str
    tied: tuple[str, str] | None

    def names(self, rule: Rule) -> list[str]:
        """Returns the rule's tensor names without prefix, in the order of layers."""
        return [rule.name.replace(LAYER, str(i)) for i in range(self.layers)] if LAYER in rule.name else [rule.name]

    def strip(self, name: str) -> str:
        """Returns a name as found in a file without the family's prefix."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                return name[len(prefix) :]
        return name

    def export_name(self, name: str) -> str:
        """Returns the name under which a tensor is written."""
        return name if name in self.unprefixed else self.prefixes[0] + name


def linear_rules(path: str, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], *, bias: bool) -> list[Rule]:
    """Returns the rules of a linear map that the file stores as [out, in].

    Args:
        path: our module.
        name: the file's module.
        inputs: our kernel's input axes.
        outputs: our kernel's output axes.
        bias: whether there is a bias.
    """
    matrix = (math.prod(outputs), math.prod(inputs))
    rules = [Rule(f"{path}/kernel", f"{name}.weight", (*inputs, *outputs), matrix, transposed=True)]
    return [*rules, Rule(f"{path}/bias", f"{name}.bias", outputs, matrix[:1])] if bias else rules


def norm_rules(path: str, name: str, width: int) -> list[Rule]:
    """Returns the rules of a LayerNorm of `width` with scale and bias."""
    return [
        Rule(f"{path}/scale", f"{name}.weight", (width,), (width,)),
        Rule(f"{path}/bias", f"{name}.bias", (width,), (width,)),
    ]


def import_tensors(table: Table, tensors: Mapping[str, np.ndarray], *, dtype: Any) -> Params:
    """Returns our parameters on the host, from tensors with their published names.

    Tensors are read one at a time and written into place, so that at most one of them is held beside the result.

    Args:
        table: the family's table for this config.
        tensors: name → array; may be lazy.
        dtype: dtype of the result.

    Raises:
        UserError: a tensor is missing, unexpected, there twice, of another shape or not of floating-point numbers.
    """
    found = _match_names(table, tensors)
    params: Params = {}
    for rule in table.rules:
        stacked, leaf = LAYER in rule.name, np.empty(0, dtype)
        for index, name in enumerate(table.names(rule)):
            tensor = tensors[found[name]]
            _check_tensor(found[name], tensor, rule)
            if index == 0:  # not before: a damaged config.json may ask for more than any machine has
                leaf = np.empty((table.layers, *rule.shape) if stacked else rule.shape, dtype)
            (leaf[index] if stacked else leaf)[...] = rule.to_ours(tensor)
        _set_leaf(params, rule.path, leaf)
    if table.tied is not None and table.tied[0] in found:
        _check_tied(tensors[found[table.tied[0]]], tensors[found[table.tied[1]]], found[table.tied[0]])
    return params


def export_tensors(table: Table, params: Params) -> dict[str, np.ndarray]:
    """Returns tensors with their published names; the inverse of `import_tensors`, in the dtype of `params`.

    Raises:
        ValueError: `params` is not the tree that the table describes.
    """
    leaves = _leaves(params)
    if sorted(leaves) != sorted(rule.path for rule in table.rules):
        raise ValueError(f"parameters {sorted(leaves)} do not fit the table")
    tensors = {}
    for rule in table.rules:
        leaf = np.asarray(leaves[rule.path])
        layers = leaf if LAYER in rule.name else (leaf,)
        for name, array in zip(table.names(rule), layers, strict=True):
            tensors[table.export_name(name)] = rule.to_torch(array)
    return tensors


def _match_names(table: Table, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns plain name → name in the file, after checking that the names are exactly the expected ones."""
    if table.layers > len(tensors):  # else the names of a damaged config.json's millions of layers are made first
        raise UserError(
            f"the weights hold {len(tensors)} tensors, too few for the {table.layers} layers of config.json; "
            "the file is incomplete or belongs to another config"
        )
    expected = {name for rule in table.rules for name in table.names(rule)}
    allowed = expected | ({table.tied[0]} if table.tied else set())
    found: dict[str, str] = {}
    unexpected = []
    for name in tensors:
        plain = table.strip(name)
        if plain in found:
            raise UserError(f"the weights hold both {found[plain]} and {name}, which are the same tensor; remove one")
        if plain in allowed:
            found[plain] = name
        elif not re.fullmatch(table.buffers, plain):
            unexpected.append(name)
    missing = sorted(expected - set(found))
    if missing:
        raise UserError(
            f"the weights lack {_some(missing)}, which config.json asks for"
            f"{f', and hold the unknown {_some(unexpected)}' if unexpected else ''}; the file is incomplete or belongs "
            "to another config"
        )
    if unexpected:
        raise UserError(
            f"the weights hold {_some(unexpected)}, which a model of this config.json does not have; "
            "the file belongs to another config"
        )
    return found


def _check_tensor(name: str, tensor: np.ndarray, rule: Rule) -> None:
    if tensor.shape != rule.torch_shape:
        raise UserError(
            f"weight {name} has shape {tensor.shape}, config.json asks for {rule.torch_shape}; "
            "the weights belong to another config"
        )
    if tensor.dtype.name not in FLOATS:
        raise UserError(
            f"weight {name} is {tensor.dtype}, must be one of {', '.join(FLOATS)}; quantised safetensors are not "
            "supported, use the unquantised model"
        )


def _check_tied(copy: np.ndarray, original: np.ndarray, name: str) -> None:
    if not np.array_equal(copy, original):
        raise UserError(
            f"weight {name} differs from the token embeddings, but config.json says that they are tied; set "
            "tie_word_embeddings to false if the family allows it, or remove the tensor"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _set_leaf(params: Params, path: str, leaf: np.ndarray) -> None:
    *parents, last = path.split("/")
    for part in parents:
        params = params.setdefault(part, {})
    params[last] = leaf


def _leaves(params: Params, path: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in params.items():
        leaves.update(_leaves(value, f"{path}{name}/") if isinstance(value, dict) else {path + name: value})
    return leaves
