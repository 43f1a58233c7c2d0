"""Freezing: one list of (path regex, label) decides what trains; `split` and `merge` follow it. Next: `optim.py`.

Parameters are plain nested dicts; a path is the keys joined by "/", the first being the tower: `vision/stem/kernel`.
The labels split the tree before `grad`, so the gradient, its norm and its clipping never see the frozen side, and the
same labels route `optax.partition` (`optim.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from frozen_jax.errors import UserError

Params = dict[str, Any]

TRAINABLE = "trainable"
FROZEN = "frozen"

LabelRules = Sequence[tuple[str, str]]


class TrainState(NamedTuple):
    """What a training step changes; donated to it.

    Attributes:
        trainable: parameters labelled trainable, float32.
        opt_state: the optimiser's state, for those alone.
    """

    trainable: Params
    opt_state: Any


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {path: leaf} of nested dicts, in the tree's order."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten`; empty dicts are not kept."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def match_rules(params: Params, rules: Sequence[tuple[str, Any]], *, what: str) -> Params:
    """Gives each leaf the value of the first rule whose regex matches its whole path.

    Raises:
        UserError: a path that no rule matches, or a rule that matches no path; there is no catch-all, because it would
            swallow a misspelt name in silence.
    """
    used, result, missed = set(), {}, []
    for path in flatten(params):
        for number, (pattern, value) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(number)
                result[path] = value
                break
        else:
            missed.append(path)
    if missed:
        raise UserError(
            f"{what}: no rule covers parameter {missed[0]!r} (and {len(missed) - 1} more); add a rule for it"
        )
    unused = [rules[number][0] for number in range(len(rules)) if number not in used]
    if unused:
        raise UserError(f"{what}: rule {unused[0]!r} matches no parameter; correct or remove it")
    return unflatten(result)


def split(params: Params, labels: Params) -> tuple[Params, Params]:
    """Splits a tree into (trainable, frozen) by its labels. `merge` is the inverse."""
    flat, flat_labels = flatten(params), flatten(labels)
    parts: dict[str, dict[str, Any]] = {TRAINABLE: {}, FROZEN: {}}
    for path, leaf in flat.items():
        parts[flat_labels[path]][path] = leaf
    return unflatten(parts[TRAINABLE]), unflatten(parts[FROZEN])


def merge(trainable: Params, frozen: Params) -> Params:
    """Joins two trees that share no leaf."""
    merged = dict(trainable)
    for key, value in frozen.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def map_with_path(function: Callable[[str, Any], Any], params: Params) -> Params:
    """Applies `function(path, leaf)` to each leaf."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(params).items()})
