"""Reads a Hugging Face `config.json` so that no field is silently ignored.

Lives here: a reader that remembers which fields were used, and the list of fields that cannot change a language
model's outputs. What a family's own fields mean is in that family's file: `gpt2.py`, `opt.py`, `llama.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from frozen_jax.errors import UserError

LARGEST = float(np.finfo(np.float32).max)
"""What a number of a config may be at most: models compute in float32, which has nothing beyond but infinity."""

MOST = 2**63 - 1
"""What a whole number may be at most: sizes and positions are counted in 64 bits."""

WITHOUT_EFFECT = frozenset(
    {
        # who wrote the file, with what, and how it is to be stored
        "_name_or_path",
        "architectures",
        "dtype",
        "finetuning_task",
        "model_type",
        "name_or_path",
        "output_past",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # what a call returns, and how it is computed
        "_attn_implementation",
        "_attn_implementation_autoset",
        "chunk_size_feed_forward",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "return_dict",
        "torchscript",
        "use_cache",
        # heads for other tasks than language modelling
        "_num_labels",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "task_specific_params",
        # generation and training defaults, which are given elsewhere
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "prefix",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "temperature",
        "tf_legacy_loss",
        "top_k",
        "top_p",
        "typical_p",
        "use_bfloat16",
    }
)
"""Fields of any family that change neither the weights nor the logits."""

MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False, None),
}
"""Fields of any family that are accepted only where they ask for nothing."""


class FieldReader:
    """Hands out the fields of one config and at the end refuses those that nobody asked for.

    Example:
        >>> reader = FieldReader({"model_type": "gpt2", "n_embd": 8})
        >>> reader.integer("n_embd", default=768)
        8
        >>> reader.finish()
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._seen: set[str] = set()
        self.family = str(config.get("model_type"))

    def _take(self, name: str, default: Any) -> Any:
        self._seen.add(name)
        return self._config.get(name, default)

    def refuse(self, name: str, value: Any, rule: str) -> UserError:
        """Builds the error for a field, for the caller to raise.

        Args:
            name: field.
            value: what the config says.
            rule: what would be accepted and why.
        """
        return UserError(f"config.json of a {self.family} model: {name} = {value!r} is not supported; {rule}")

    def integer(self, name: str, *, default: int | None, minimum: int = 1) -> int:
        """Returns a whole number from `minimum` to `MOST`; without a default the field must be there.

        Raises:
            UserError: missing, not a whole number, or out of that range.
        """
        value = self._take(name, default)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MOST:
            raise self.refuse(name, value, f"it must be a whole number of at least {minimum}, of at most 64 bits")
        return value

    def optional_integer(self, name: str, *, default: int | None = None, minimum: int = 1) -> int | None:
        """Returns a whole number ≥ `minimum`, the default where the field is missing, or None where it is null."""
        return None if self._take(name, default) is None else self.integer(name, default=default, minimum=minimum)

    def number(self, name: str, *, default: float, minimum: float = 0.0) -> float:
        """Returns a number from `minimum` to `LARGEST` as float.

        Raises:
            UserError: not a number, too small, or not finite.
        """
        value = self._take(name, default)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or not minimum <= value <= LARGEST:
            raise self.refuse(name, value, f"it must be a number of at least {minimum}, finite in float32")
        return float(value)

    def rate(self, name: str, *, default: float) -> float:
        """Returns a dropout rate in [0, 1).

        Raises:
            UserError: outside that range.
        """
        value = self.number(name, default=default)
        if value >= 1.0:
            raise self.refuse(name, value, "it must be below 1")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        """Returns a truth value.

        Raises:
            UserError: the field is anything but true or false.
        """
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, value, "it must be true or false")
        return value

    def choice(self, name: str, allowed: Iterable[str], *, default: str) -> str:
        """Returns one of the words in `allowed`.

        Raises:
            UserError: the field is none of them.
        """
        value = self._take(name, default)
        words = sorted(allowed)
        if value not in words:
            raise self.refuse(name, value, f"it must be one of {', '.join(words)}")
        return str(value)

    def token_ids(self, name: str, *, default: int | None) -> tuple[int, ...]:
        """Returns the ids of a special token: () for null, else one or several.

        Raises:
            UserError: something that is not an id, or a negative one.
        """
        value = self._take(name, default)
        ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
            raise self.refuse(name, value, "it must be a token id, a list of token ids or null")
        return ids

    def token_id(self, name: str, *, default: int | None) -> int | None:
        """Returns the id of a special token that a text can have one of, or None.

        Raises:
            UserError: several ids, or something that is not an id.
        """
        ids = self.token_ids(name, default=default)
        if len(ids) > 1:
            raise self.refuse(name, list(ids), "it must be one token id or null")
        return ids[0] if ids else None

    def padding_id(self, *, default: int | None) -> int | None:
        """Returns `pad_token_id`: kept for export only, since padding is masked here; old files have -1 for none.

        Raises:
            UserError: not a whole number.
        """
        value = self._take("pad_token_id", default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.refuse("pad_token_id", value, "it must be a token id or null")
        return value

    def value(self, name: str) -> Any:
        """Returns the field as it stands, or None; the caller checks it."""
        return self._take(name, None)

    def require(self, name: str, *allowed: Any, reason: str) -> None:
        """Accepts the field only if it is missing or one of `allowed`.

        Raises:
            UserError: any other value, with `reason`.
        """
        if name in self._config and not any(
            self._config[name] == value and isinstance(self._config[name], bool) == isinstance(value, bool)
            for value in allowed
        ):
            raise self.refuse(name, self._config[name], reason)
        self._seen.add(name)

    def ignore(self, *names: str) -> None:
        """Marks fields of this family that have no effect on weights and logits."""
        self._seen.update(names)

    def finish(self) -> None:
        """Refuses what nobody asked for.

        Raises:
            UserError: the config has a field that is neither used nor known to have no effect.
        """
        for name, allowed in MUST_BE.items():
            self.require(name, *allowed, reason="this would be another network, which is not built here")
        unknown = sorted(set(self._config) - self._seen - WITHOUT_EFFECT)
        if unknown:
            name = unknown[0]
            more = f" (and {', '.join(unknown[1:])})" if len(unknown) > 1 else ""
            raise self.refuse(
                name + more,
                self._config[name],
                "a field that is not understood may change the outputs; remove it if you know that it has no effect",
            )


def token_field(ids: tuple[int, ...]) -> int | list[int] | None:
    """Returns special-token ids in the form that config.json uses: null, one id, or a list."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)
