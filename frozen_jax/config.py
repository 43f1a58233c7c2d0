"""Every setting, its default and its rule. `configs/*.py` start from `default_config()`; `main` converts once.

The dataclasses below, and those of the `…_settings.py` files, are the only place of defaults. `default_config()` shows
them to a user as a locked `ml_collections.ConfigDict`, so that files and flags (`--config.train.steps=100`) can change
but not misspell them; `from_config_dict`, the one reader of a ConfigDict, turns that back and refuses unknown keys,
wrong types and contradictions. Next: `main.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ml_collections import ConfigDict

from frozen_jax.adaptation_settings import AdaptationSettings, check_adaptation
from frozen_jax.data.augment import AugmentOptions
from frozen_jax.data_settings import DataSettings, check_data
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import BLIND_TASKS, EvaluateSettings, check_evaluate
from frozen_jax.fault_settings import FaultSettings, check_faults
from frozen_jax.fusion_settings import FusionSettings, check_fusion
from frozen_jax.generator_settings import GeneratorSettings, check_generator
from frozen_jax.lm_settings import LMSettings, check_lm
from frozen_jax.prefix_settings import PrefixSettings, check_prefix, list_unused
from frozen_jax.retrieval_settings import RetrievalSettings, check_retrieval
from frozen_jax.telemetry_settings import TelemetrySettings, check_telemetry

FREE_SECTIONS = ("checkpoint", "evaluate", "faults", "mesh", "profile", "telemetry")
"""Sections that may differ from one start of a run to the next: how it is guarded, what is measured and shown, where it
runs."""


@dataclass(frozen=True)
class VisionSettings:
    """The vision encoder.

    Attributes:
        name: from `models.vision`; "" trains on text alone.
        options: of that encoder.
        path: directory (of an exported run, too), file (safetensors or torch) or hub id with its pre-trained weights,
            which have to fit the options (docs/export.md); "" draws them.
        freeze: the encoder never changes either, and the prefix alone is trained.
        feature_cache: directory in which a frozen encoder's features of all pictures are kept: each picture is encoded
            once, by whichever run needs it first, and training neither opens pictures nor runs the encoder. All
            processes must see it. "" encodes the pictures of each step.
    """

    name: str = ""
    path: str = ""
    freeze: bool = False
    feature_cache: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimSettings:
    """Adam as in the paper: betas 0.9 / 0.95, constant 3e-4 (1e-5 for the `finetuned` and `scratch` controls).

    Attributes:
        schedule: `constant` or `cosine` (to 2 % of the peak), after `warmup_steps` of linear warm-up.
        weight_decay: decoupled, on kernels and embeddings only.
        clip_norm: largest global norm of the trainables' gradient; 0 is off.
        label_smoothing: share of each target spread over the vocabulary, in [0, 1).
        accumulate: micro-batches per optimiser step; the batch is cut into so many.
    """

    learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    accumulate: int = 1


@dataclass(frozen=True)
class TrainSettings:
    """How long to train.

    Attributes:
        steps: optimiser steps at most.
        batch_size: examples per optimiser step, over all devices.
        log_every, evaluate_every: in steps.
        patience: evaluations without a better validation perplexity after which training ends; 0 never ends early.
        validation_examples: at most so many, the first of the source.
        embedding_noise: Gaussian noise on the embeddings, relative to their RMS; for the text stage, so that the
            language model bears vectors that are no words.
    """

    steps: int = 1000
    batch_size: int = 128
    log_every: int = 20
    evaluate_every: int = 500
    patience: int = 0
    validation_examples: int = 1024
    embedding_noise: float = 0.0


@dataclass(frozen=True)
class CheckpointSettings:
    """When to save, in steps; how many to keep beside the best; whether a damaged one stops the run or is set aside."""

    every: int = 500
    keep: int = 2
    on_damage: Literal["raise", "fallback"] = "raise"


@dataclass(frozen=True)
class MeshSettings:
    """How the devices are arranged; see `sharding.py`. At most one axis is -1, which takes what the others leave.

    Attributes:
        data: the batch is cut along it, and nothing else.
        fsdp: the batch and the storage of parameters and optimiser state are cut along it.
        tensor: the language model's heads, MLP width and vocabulary are cut along it; it must divide the first two.
        frozen: whether the frozen weights are cut along `fsdp` too (`sharded`), kept whole (`replicated`), or cut where
            they would take more than 4 GB of each device (`auto`).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    frozen: Literal["auto", "replicated", "sharded"] = "auto"


@dataclass(frozen=True)
class ProfileSettings:
    """A window of training steps whose trace is written to `profile/` in the workdir, for TensorBoard and Perfetto.

    Attributes:
        start: the first step in it, counted from 1; 0 is none. Take one well after the first, which compiles.
        steps: how many steps.
    """

    start: int = 0
    steps: int = 3


@dataclass(frozen=True)
class Config:
    """A whole run. `blind` trains and evaluates on black images (the paper's train-blind control)."""

    seed: int = 0
    blind: bool = False
    lm: LMSettings = field(default_factory=LMSettings)
    adaptation: AdaptationSettings = field(default_factory=AdaptationSettings)
    vision: VisionSettings = field(default_factory=VisionSettings)
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    fusion: FusionSettings = field(default_factory=FusionSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    faults: FaultSettings = field(default_factory=FaultSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)

    @property
    def uses_pictures(self) -> bool:
        """Whether training rows have pictures: seen by an encoder, or drawn by a generator."""
        return bool(self.vision.name or self.generator.name)

    @property
    def adapts_lm(self) -> bool:
        """Whether something trains beside a frozen language model."""
        return bool(self.lm.lora_rank) or self.adaptation != AdaptationSettings()

    @property
    def pairs_per_row(self) -> int:
        """Most pictures with their texts in a training row; a step has at least batch_size / pairs_per_row rows."""
        return max(self.data.pack, 2 if self.data.pair_probability else 1)

    @property
    def micro_batch_rows(self) -> int:
        """Rows of one micro-batch over all devices: what the mesh's `data` x `fsdp` must divide."""
        return self.train.batch_size // self.pairs_per_row // self.optim.accumulate


def default_config() -> ConfigDict:
    """Returns all settings at their defaults, locked: a misspelt name is an error where it is written."""
    config = ConfigDict(to_dict(Config()), sort_keys=False)
    config.lock()
    for section, name in (("lm", "architecture"), ("vision", "options")):
        config[section][name].unlock()  # free-form dicts: their readers check the names
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the resolved config as plain nested dicts, as `config.json` holds it."""
    return dataclasses.asdict(config)


def list_free_sections(config: Config) -> tuple[str, ...]:
    """Returns `FREE_SECTIONS`, sections that are off, and settings that make no difference: a run from before these is
    still the same."""
    off = {"generator": not config.generator.name, "adaptation": config.adaptation == AdaptationSettings()}
    unused = [f"prefix.{name}" for name in list_unused(config.prefix)]
    unused += [] if config.retrieval.turns else ["retrieval.turns"]
    return (*FREE_SECTIONS, *(name for name, is_off in off.items() if is_off), *unused)


def identify(config: Config) -> dict[str, Any]:
    """Returns what makes a run this one and no other: everything but what `list_free_sections` lists."""
    left_out = list_free_sections(config)
    kept = {name: section for name, section in to_dict(config).items() if name not in left_out}
    for section in ("prefix", "retrieval"):
        kept[section] = {name: value for name, value in kept[section].items() if f"{section}.{name}" not in left_out}
    return kept


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> Config:
    """Converts what the user gave into the frozen dataclasses.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of a wrong type, or values that contradict.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    result = typing.cast(Config, _build(Config, given, "config"))
    _check(result)
    return result


def _build(kind: type, given: Any, path: str) -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    if not isinstance(given, Mapping):
        raise UserError(f"{path} is {given!r}, a {type(given).__name__}; it must hold settings: {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    for key in given:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(fields)}"
            raise UserError(f"{path}.{key}: no such setting; {hint}")
    values = {}
    for key, value in given.items():
        name, hint = f"{path}.{key}", hints[key]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        values[key] = _build(hint, value, name) if nested else _convert(hint, value, name)
    return kind(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
        return value
    kind = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if kind is dict and isinstance(value, Mapping):
        return dict(value)
    if kind is tuple and isinstance(value, tuple | list):  # JSON has lists alone
        return _convert_tuple(typing.get_args(hint), value, name)
    if type(value) is not kind:
        wanted = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else str(kind)
        raise UserError(f"{name} is {value!r}, a {type(value).__name__}; it must be a {wanted}")
    return value


def _convert_tuple(hints: tuple[Any, ...], value: Sequence[Any], name: str) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise UserError(f"{name} is {value!r}; it must have {len(hints)} values")
    pairs = zip(hints, value, strict=True)
    return tuple(_convert(hint, entry, f"{name}[{place}]") for place, (hint, entry) in enumerate(pairs))


def _check(config: Config) -> None:
    """Rules between and within settings; each message says what to change."""

    def require(holds: bool, name: str, value: Any, rule: str) -> None:
        if not holds:
            raise UserError(f"config.{name} is {value!r}; {rule}")

    for name, value in (
        ("train.steps", config.train.steps),
        ("train.batch_size", config.train.batch_size),
        ("train.log_every", config.train.log_every),
        ("train.evaluate_every", config.train.evaluate_every),
        ("train.validation_examples", config.train.validation_examples),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep", config.checkpoint.keep),
        ("optim.accumulate", config.optim.accumulate),
        ("profile.steps", config.profile.steps),
    ):
        require(value >= 1, name, value, "it must be at least 1")
    for name, share in (
        ("optim.label_smoothing", config.optim.label_smoothing),
        ("optim.beta1", config.optim.beta1),
        ("optim.beta2", config.optim.beta2),
    ):
        require(0 <= share < 1, name, share, "it must be at least 0 and less than 1")
    for name, amount in (
        ("optim.learning_rate", config.optim.learning_rate),
        ("optim.weight_decay", config.optim.weight_decay),
        ("optim.clip_norm", config.optim.clip_norm),
        ("optim.warmup_steps", config.optim.warmup_steps),
        ("train.patience", config.train.patience),
        ("train.embedding_noise", config.train.embedding_noise),
        ("profile.start", config.profile.start),
    ):
        require(amount >= 0, name, amount, "it must not be negative")
    require(0 <= config.seed < 2**32, "seed", config.seed, "it must be at least 0 and less than 2**32")
    check_data(config.data, require)
    check_evaluate(config.evaluate, require)
    check_faults(config.faults, require)
    check_fusion(config.fusion, require)
    check_generator(config.generator, config.data.image.size, require)
    cached = config.vision.feature_cache
    check_prefix(config.prefix, require, cached=cached, retrieval=config.retrieval.weight)
    check_telemetry(config.telemetry, require)
    check_retrieval(
        config.retrieval,
        require,
        sees=bool(config.vision.name),
        pairs_per_row=config.pairs_per_row,
        micro_batch_rows=config.micro_batch_rows,
        asks=config.data.question_fraction > 0,
    )
    require(
        config.train.batch_size % (config.optim.accumulate * config.pairs_per_row) == 0,
        "train.batch_size",
        config.train.batch_size,
        f"it must be a multiple of optim.accumulate={config.optim.accumulate}, which cuts it in equal parts, times "
        f"{config.pairs_per_row} pairs in a row (data.pack, data.pair_probability)",
    )
    check_lm(config.lm, require)
    task, draws = config.evaluate.task, bool(config.generator.name)
    use = "the generator" if draws else "the fusion" if config.fusion.kind else ""
    lora, mode = config.lm.lora_rank, config.lm.mode
    check_adaptation(config.adaptation, require, lora_rank=lora, lm_mode=mode, task=task, other_use=use)
    rule = (
        "only a generator draws pictures, and it does nothing else; set it to 'generate' with generator.name, or 'none'"
    )
    require(task == "none" or draws == (task == "generate"), "evaluate.task", task, rule)
    reader = "generator.name" if draws else "retrieval.weight" if config.retrieval.weight else ""
    prompt = config.data.caption_prompt
    rule = f"{reader} is for captions as they are asked with later, without it; put these words in data.caption_format"
    require(not prompt or not reader, "data.caption_prompt", prompt, rule)
    if draws:
        rule = f"generator.name={config.generator.name!r} draws the one picture of a row from its text and has no use"
        unused: dict[str, tuple[Any, Any]] = {
            "vision.name": (config.vision.name, ""),
            "blind": (config.blind, False),
            "evaluate.blind_control": (config.evaluate.blind_control, False),
            "data.pack": (config.data.pack, 1),
            "data.pair_probability": (config.data.pair_probability, 0.0),
            "optim.label_smoothing": (config.optim.label_smoothing, 0.0),
            "train.embedding_noise": (config.train.embedding_noise, 0.0),
        }
        for setting, (given, off) in unused.items():
            require(given == off, setting, given, f"{rule} for this; set it to {off!r}")
    if config.vision.name:
        require(
            bool(config.vision.path) or not config.vision.freeze,
            "vision.freeze",
            config.vision.freeze,
            "an encoder drawn at random would stay so; give vision.path",
        )
        cache = config.vision.feature_cache
        rule = "features stay the same only where the encoder does; set vision.freeze=True, or leave this empty"
        require(config.vision.freeze or not cache, "vision.feature_cache", cache, rule)
        rule = "the features are those of unchanged pictures; leave data.augment at its defaults, or this empty"
        require(not cache or config.data.augment == AugmentOptions(), "vision.feature_cache", cache, rule)
        taken = config.prefix.length + int(config.data.bos) + config.adaptation.prompt_length
        slots = taken * config.data.pack
        require(
            config.data.max_tokens > slots + config.data.pack,
            "data.max_tokens",
            config.data.max_tokens,
            f"the image slots and marks take {slots} positions; leave room for words",
        )
    else:
        require(
            config.lm.mode != "frozen" or config.adapts_lm or draws,
            "lm.mode",
            config.lm.mode,
            "without vision.name nothing would be trained; set lm.mode, lm.lora_rank or adaptation, or name a vision "
            "encoder or a generator",
        )
        for option in ("freeze", "path", "feature_cache"):
            given = getattr(config.vision, option)
            require(not given, f"vision.{option}", given, "there is no encoder that it is about; set vision.name")
        rule = "text-only training has no images to blacken; name a vision encoder"
        require(not config.blind, "blind", True, rule)
        require(not config.evaluate.blind_control, "evaluate.blind_control", True, rule)
        rule = "it shows pictures, and without vision.name there is text alone; name an encoder, or set it to none"
        require(task in BLIND_TASKS, "evaluate.task", task, rule)
    if config.fusion.kind:
        rule = f"fusion.kind={config.fusion.kind!r} names one class for a picture and a text"
        unused = {
            "data.pack": (config.data.pack, 1),
            "data.pair_probability": (config.data.pair_probability, 0.0),
            "train.embedding_noise": (config.train.embedding_noise, 0.0),
            "retrieval.weight": (config.retrieval.weight, 0.0),
        }
        for setting, (given, off) in unused.items():
            require(given == off, setting, given, f"{rule} and has no use for this; set it to {off!r}")
        require(bool(config.vision.name), "vision.name", "", f"{rule}; name an encoder")
        cached = config.vision.feature_cache if config.fusion.kind == "cross_attention" else ""
        rule = "cross_attention looks at the places of a picture, of which cached features know nothing; leave it empty"
        require(not cached, "vision.feature_cache", cached, rule)
    sizes = {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor}
    rule = "it must be a number of devices, or -1 for those that the other axes leave"
    for axis, size in sizes.items():
        require(size == -1 or size >= 1, f"mesh.{axis}", size, rule)
    rest = [axis for axis, size in sizes.items() if size == -1]
    rule = f"mesh.{rest[0] if rest else ''} is -1 too, and only one axis can be the rest; give a number for the others"
    require(len(rest) <= 1, f"mesh.{rest[-1] if rest else ''}", -1, rule)
