"""Rotary position embeddings with the scaling variants of Llama-type models.

Lives here: reading them from config.json, the frequencies, and the rotation. Used by `llama.py` only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from frozen_jax.errors import UserError
from frozen_jax.models.hf_config import LARGEST, MOST

SMALLEST = float(np.finfo(np.float32).tiny)
"""Of a number of these: anything smaller is divided by as zero in float32."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
"""The fields of config.json that each kind of scaling has beside rope_type and rope_theta."""

NEEDED = ("factor", "low_freq_factor", "high_freq_factor")
"""Fields without which their kind of scaling is not defined."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn into angles.

    Attributes:
        kind: a name in `KINDS`.
        theta: base of the wavelengths.
        factor: how many times the trained context is stretched; 1 for "default".
        original_positions: context length before stretching; "llama3" and "yarn".
        low_freq_factor: wavelengths above original_positions / this are stretched fully; "llama3".
        high_freq_factor: wavelengths below original_positions / this are kept; "llama3".
        attention_factor: multiplies cosines and sines; None derives it from the factor; "yarn".
        beta_fast: dimensions that turn more often than this over the context are kept; "yarn".
        beta_slow: dimensions that turn less often than this are stretched fully; "yarn".
        mscale: with mscale_all_dim, another way to derive the attention factor; "yarn".
        mscale_all_dim: see mscale.
        truncate: round the bounds of the ramp between kept and stretched to whole dimensions; "yarn".

    Source: Su et al. 2021, arXiv 2104.09864; Chen et al. 2023, arXiv 2306.15595 (linear); Peng et al. 2023,
        arXiv 2309.00071 (yarn); Llama 3.1's released code (llama3).
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, default_theta: float, max_positions: int) -> Rope:
        """Reads `rope_parameters`, or `rope_scaling` and `rope_theta` of older files, from a config.json.

        Args:
            config: the whole config.json.
            default_theta: the family's base where the file has none.
            max_positions: the family's or the file's context length.

        Raises:
            UserError: unknown kind of scaling, unknown or missing field, or a value that is not a number or that no
                frequencies follow from.
        """
        new, old = config.get("rope_parameters"), config.get("rope_scaling")
        for name, value in (("rope_parameters", new), ("rope_scaling", old)):
            if value is not None and not isinstance(value, Mapping):
                raise UserError(f"config.json: {name} = {value!r} must be an object or null")
        if new and old and dict(new) != dict(old):
            raise UserError(
                f"config.json: rope_parameters = {new!r} and rope_scaling = {old!r} contradict each other; remove one"
            )
        stated = new or old or {}
        kind = stated.get("rope_type", stated.get("type", "default"))
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(
                f"config.json: rope_type = {kind!r} is not supported, only {', '.join(KINDS)}; kinds whose frequencies "
                "change with the length of the text would invalidate cached keys"
            )
        given = {
            name: value for name, value in stated.items() if name not in ("rope_type", "type") and value is not None
        }
        partial = given.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise UserError(f"config.json: partial_rotary_factor = {partial!r} is not supported, only 1")
        unknown = sorted(set(given) - {"rope_theta", *KINDS[kind]})
        if unknown:
            raise UserError(
                f"config.json: rope parameter {unknown[0]} = {given[unknown[0]]!r} is not a field of {kind!r} scaling; "
                "a field that is not understood may change the outputs"
            )
        theta = given.pop("rope_theta", config.get("rope_theta"))
        given["theta"] = default_theta if theta is None else theta
        for name, value in given.items():
            _check(name, value)
        if kind == "yarn" and "factor" not in given and "original_max_position_embeddings" in given:
            given["factor"] = max_positions / given["original_max_position_embeddings"]
        for name in NEEDED:
            if name in KINDS[kind] and name not in given:
                raise UserError(f"config.json: rope parameter {name} is missing; {kind!r} scaling needs it")
        if "original_max_position_embeddings" in KINDS[kind]:
            given["original_positions"] = given.pop("original_max_position_embeddings", max_positions)
        # JSON writes 100000 as readily as 100000.0.
        kept = {"truncate": bool, "original_positions": int}
        rope = cls(kind=kind, **{name: kept.get(name, float)(value) for name, value in given.items()})
        if kind == "llama3" and rope.low_freq_factor >= rope.high_freq_factor:
            raise UserError(
                f"config.json: rope parameter high_freq_factor = {rope.high_freq_factor} must be above "
                f"low_freq_factor = {rope.low_freq_factor}; it bounds the shorter wavelengths"
            )
        if kind == "yarn" and rope.theta <= 1:
            raise UserError(f"config.json: rope_theta = {rope.theta} must be above 1; wavelengths are its powers")
        return rope

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of `rope_parameters`."""
        fields = {name: getattr(self, name, None) for name in KINDS[self.kind]}
        if "original_max_position_embeddings" in fields:
            fields["original_max_position_embeddings"] = self.original_positions
        stated = {name: value for name, value in fields.items() if value is not None}
        return {"rope_type": self.kind, "rope_theta": self.theta, **stated}

    def frequencies(self, head_width: int) -> tuple[np.ndarray, float]:
        """Returns angles per position, f32 [H / 2], and what multiplies cosines and sines.

        Args:
            head_width: H, even.
        """
        exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
        plain = np.float32(1.0) / np.float32(self.theta) ** exponents
        if self.kind == "llama3":
            return self._blend_by_wavelength(plain), 1.0
        if self.kind == "yarn":
            return self._blend_by_rotations(plain, head_width), self._attention_factor()
        return plain / np.float32(self.factor), 1.0

    def _blend_by_wavelength(self, plain: np.ndarray) -> np.ndarray:
        """Keeps short wavelengths, stretches long ones, and interpolates between (llama3)."""
        turns = self.original_positions * plain / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return np.asarray((1 - kept) * plain / self.factor + kept * plain, np.float32)

    def _blend_by_rotations(self, plain: np.ndarray, head_width: int) -> np.ndarray:
        """Keeps dimensions that turn often within the context, stretches slow ones, with a ramp between (yarn)."""

        def dimension_of(rotations: float) -> float:
            wavelength = self.original_positions / (rotations * 2 * math.pi)
            return head_width * math.log(wavelength) / (2 * math.log(self.theta))

        low, high = dimension_of(self.beta_fast), dimension_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_width - 1)
        # A ramp of no length is a step; the small width keeps the division finite.
        width = high - low if high != low else 0.001
        stretched = np.clip((np.arange(head_width // 2, dtype=np.float32) - low) / width, 0, 1)
        return np.asarray(stretched * plain / self.factor + (1 - stretched) * plain, np.float32)

    def _attention_factor(self) -> float:
        def temperature(scale: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return temperature(self.mscale) / temperature(self.mscale_all_dim)
        return temperature(1.0)


def _check(name: str, value: Any) -> None:
    """Refuses a field's value that is of another type than its own, or out of range."""
    if name == "truncate":
        if not isinstance(value, bool):
            raise UserError(f"config.json: rope parameter truncate = {value!r} must be true or false")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A comparison is false for NaN and exact for integers of any length, which float() and isfinite do not take.
    if not number or not SMALLEST <= value <= LARGEST:
        raise UserError(f"config.json: rope parameter {name} = {value!r} must be a number above 0, finite in float32")
    if name == "original_max_position_embeddings" and not 1 <= value <= MOST:
        raise UserError(f"config.json: rope parameter {name} = {value!r} counts positions: 1 or more, in 64 bits")


def rope_angles(
    rope: Rope, positions: Int[Array, "B S"], head_width: int
) -> tuple[Float[Array, "B S half"], Float[Array, "B S half"]]:
    """Returns the cosines and sines of each position, f32, one per pair of head dimensions."""
    frequencies, scale = rope.frequencies(head_width)
    angles = positions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies)[None, None, :]
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "B S N H"], cosines: Float[Array, "B S half"], sines: Float[Array, "B S half"]
) -> Float[Array, "B S N H"]:
    """Returns x with dimension i and i + H/2 of every head turned by their angle."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosines, sines = cosines[:, :, None, :], sines[:, :, None, :]
    turned = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return turned.astype(x.dtype)
