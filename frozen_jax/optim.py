"""The optimiser: schedule, clipping, decay mask, and the partition by freezing label. Next: `steps.py`."""

from __future__ import annotations

import re

import optax

from frozen_jax.adapters import ADDED
from frozen_jax.config import OptimSettings
from frozen_jax.models.vision import FROZEN_STATISTICS
from frozen_jax.state import FROZEN, TRAINABLE, LabelRules, Params, flatten, map_with_path, match_rules

DECAYED_LEAVES = ("kernel", "embedding")
"""Names of the leaves that weight decay applies to; biases, gains and norms keep out."""


def list_label_rules(params: Params, *, lm_trains: bool, vision_trains: bool = True) -> LabelRules:
    """Writes the freezing rules of these towers: the one place that says what trains.

    Args:
        params: the whole tree; only its paths are read.
        lm_trains: the `finetuned` and `scratch` controls and the text stage.
        vision_trains: not where `vision.freeze` leaves the prefix alone to train.
    """
    if any(re.fullmatch(ADDED, path) for path in flatten(params["lm"])):
        rules = [(f"lm/{ADDED}", TRAINABLE), (f"lm/(?!{ADDED}$).*", FROZEN)]
    else:
        rules = [("lm/.*", TRAINABLE if lm_trains else FROZEN)]
    if "vision" in params:
        # Imported encoders carry running statistics, which are no weights.
        if vision_trains and any(re.fullmatch(FROZEN_STATISTICS, path) for path in flatten(params["vision"])):
            rules.append((f"vision/{FROZEN_STATISTICS}", FROZEN))
        rules.append(("vision/.*", TRAINABLE if vision_trains else FROZEN))
    heads = ("prefix", "retrieval", "fusion", "generator")
    rules += [(f"{tower}/.*", TRAINABLE) for tower in heads if tower in params]
    return tuple(rules)


def make_schedule(settings: OptimSettings, *, steps: int) -> optax.Schedule:
    """Learning rate by optimiser step: linear warm-up, then constant or a cosine to 2 % of the peak at `steps`."""
    peak = settings.learning_rate
    if settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(steps - settings.warmup_steps, 1), alpha=0.02)
    else:
        main = optax.constant_schedule(peak)
    if not settings.warmup_steps:
        return main
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, settings.warmup_steps), main], [settings.warmup_steps]
    )


def make_optimiser(settings: OptimSettings, rules: LabelRules, *, steps: int) -> optax.GradientTransformation:
    """Builds Adam with decoupled decay behind a partition by label.

    The frozen label gets `set_to_zero` and no state. A training step hands in the trainable sub-tree alone, so that
    branch stays empty there; it is what keeps a language model unchanged for whoever hands in the whole tree, and
    unlike `optax.masked` it lets no raw gradient through. Clipping sits inside the trainable branch: a global norm
    over all parameters would bring back the weight gradients of the frozen model.

    Args:
        rules: from `list_label_rules`.
        steps: total optimiser steps, for the schedule.
    """
    parts = []
    if settings.clip_norm:
        parts.append(optax.clip_by_global_norm(settings.clip_norm))
    parts.append(
        optax.adamw(
            make_schedule(settings, steps=steps),
            b1=settings.beta1,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=lambda params: map_with_path(lambda path, _: path.rsplit("/", 1)[-1] in DECAYED_LEAVES, params),
        )
    )

    def label(params: Params) -> Params:
        paths = flatten(params)  # of a sub-tree, in which some rules have nothing to match
        present = [rule for rule in rules if any(re.fullmatch(rule[0], path) for path in paths)]
        return match_rules(params, present, what="freezing")

    return optax.partition({TRAINABLE: optax.chain(*parts), FROZEN: optax.set_to_zero()}, label)
