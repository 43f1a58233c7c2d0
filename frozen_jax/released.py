"""What a released model is on disk: what was trained, and by digest what it was trained through, which others publish.

    frozen_jax/assets/released/NAME/     frozen_jax.load("frozen_jax/NAME")
        model.safetensors                what was trained, in float16, by its path in the parameters
        config.json                      of the run, as far as the model depends on it
        frozen.json                      SHA-256 of the language model and of the frozen encoder, as they were loaded
        README.md                        the card
        SHA256SUMS                       of the first three

Written by `tools/release.py`, loaded by `restore.py`; the frozen files are found by `fetch/sets.py`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from frozen_jax.build import PACKAGE, Towers
from frozen_jax.config import Config, from_config_dict, identify, to_dict
from frozen_jax.convert.safetensors_reader import SINGLE, SafetensorsDirectory
from frozen_jax.errors import UserError
from frozen_jax.fetch.sets import is_member, locate
from frozen_jax.state import Params, flatten, unflatten
from frozen_jax.sums import SUMS, format_sums, verify_sums
from frozen_jax.workdir import CONFIG, read_json, write_bytes_atomic, write_json_atomic, write_text_atomic

FOLDER = PACKAGE / "assets" / "released"
OWNER = "frozen_jax"
"""What stands before the name of a released model."""
FROZEN, CARD = "frozen.json", "README.md"
LISTED = (CONFIG, FROZEN, SINGLE)
"""What SHA256SUMS vouches for."""
DTYPE = np.dtype(np.float16)
ASKED = r"batch_size|max_new_tokens|(caption|vqa)/.*|classify/(prompts|name_format)|generate/(steps|guidance)"
"""Paths of the settings of `evaluate` that say how the model is asked."""


def list_released() -> dict[str, Path]:
    """Returns the directories of the models that ship with frozen_jax, by name."""
    return {f"{OWNER}/{entry.parent.name}": entry.parent for entry in sorted(FOLDER.glob(f"*/{FROZEN}"))}


def find_model(path: str | os.PathLike[str]) -> Path:
    """Returns the directory that a path or a name such as "frozen_jax/emoji_smollm2" stands for.

    The name of a released model means that model in every directory; a directory of one's own that is called the same
    is reached by its absolute path. What no released model is called is a path.

    Raises:
        UserError: there is neither a model of that name nor such a directory.
    """
    released, given = list_released(), Path(path)
    found = released.get(given.as_posix(), given)
    if given.parent == Path(OWNER) and not found.exists():
        raise UserError(
            f"{given.as_posix()!r} is neither a released model nor a directory here; released are "
            f"{', '.join(released) or 'none'}"
        )
    return found


def is_release(directory: Path) -> bool:
    """Whether a directory holds a released model."""
    return (directory / FROZEN).is_file()


def read_release(directory: Path) -> Config:
    """Returns the config of a released model's run, once all files are as they were written.

    Raises:
        UserError: a file is missing, damaged or not listed in SHA256SUMS.
    """
    verify_sums(directory, required=LISTED)
    return from_config_dict(read_json(directory / CONFIG))


def locate_frozen(config: Config) -> Config:
    """Returns the config with the paths at which the frozen files are here; fetches those that are not.

    Raises:
        UserError: a file is not here and cannot be fetched.
    """
    lm, vision = config.lm, config.vision
    if is_member(lm.path):
        lm = dataclasses.replace(lm, path=str(locate(lm.path)))
    if is_member(vision.path):
        vision = dataclasses.replace(vision, path=str(locate(vision.path)))
    return dataclasses.replace(config, lm=lm, vision=vision)


def read_trained(directory: Path, towers: Towers) -> Params:
    """Returns what was trained, in float32 on the host, if these are the towers that it was trained through.

    Raises:
        UserError: another language model or encoder; or tensors that do not fit them.
    """
    wanted = read_json(directory / FROZEN)
    for part, found in _fingerprint(towers).items():
        if found != wanted.get(part):
            raise UserError(
                f"{directory}: was trained with the {part} of SHA-256 {wanted.get(part)}, and the one here has "
                f"{found}; remove that one, so that the right one is fetched"
            )
    tensors, shapes = SafetensorsDirectory(directory), flatten(towers.trainable)
    differing = sorted({*tensors} ^ {*shapes})
    differing += [name for name in shapes if not differing and tensors[name].shape != shapes[name].shape]
    if differing:
        raise UserError(f"{directory / SINGLE}: {differing[0]} does not fit the config beside it; get both again")
    return unflatten({name: tensors[name].astype(np.float32) for name in shapes})


def write_release(directory: Path, config: Config, towers: Towers, trained: Params, *, card: str) -> None:
    """Fills a directory.

    Args:
        directory: exists and is empty.
        config: of the run.
        towers: that it was trained through.
        trained: what came out, on the host.
        card: text of README.md.

    Raises:
        UserError: what was frozen is not where everybody can have it, or a number is too large for float16.
    """
    named = {"lm.path": config.lm.path, "vision.path": config.vision.path}
    for setting, path in named.items():
        if not (is_member(path) or path.startswith("package:") or (setting == "vision.path" and not path)):
            raise UserError(
                f"this run has {setting}={path!r}, which others cannot get by that path; a released model is trained "
                "through what tools.fetch_data fetches or what the package holds (package:NAME)"
            )
    stored = {name: round_half(leaf) for name, leaf in flatten(trained).items()}
    too_large = [name for name, leaf in stored.items() if not np.isfinite(leaf).all()]
    if too_large:
        raise UserError(f"{too_large[0]} has a number that float16 cannot hold; this run cannot be released")
    write_bytes_atomic(directory / SINGLE, save(stored))
    write_json_atomic(directory / CONFIG, describe_release(config))
    write_json_atomic(directory / FROZEN, _fingerprint(towers))
    write_text_atomic(directory / CARD, card)
    write_text_atomic(directory / SUMS, format_sums((name, directory / name) for name in LISTED))


def describe_release(config: Config) -> dict[str, Any]:
    """Returns what is kept of a config: what makes the run this one, and how it is asked. The rest may change with
    frozen_jax without making a released model unreadable."""
    evaluate = flatten(to_dict(config)["evaluate"])
    asked = {path: value for path, value in evaluate.items() if re.fullmatch(ASKED, path)}
    return identify(config) | {"evaluate": unflatten(asked)}


def round_half(leaf: np.ndarray) -> np.ndarray:
    """Returns an array as a released model stores it: rounded to the nearest float16, too large numbers infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(leaf).astype(DTYPE)


def _fingerprint(towers: Towers) -> dict[str, str]:
    return {"language model": towers.fingerprint, "encoder": towers.vision_fingerprint}
