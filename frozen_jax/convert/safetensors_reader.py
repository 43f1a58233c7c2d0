"""Weights in a Hugging Face directory: one `model.safetensors`, or shards named by `model.safetensors.index.json`.

Where there are both, the single file counts, as for transformers.

Lives here: opening, and errors for what is missing or damaged. Tensors are read only when asked for. What their names
mean: `tables.py`. Pickled weights (`pytorch_model.bin`) are refused: reading them can run any code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from frozen_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class SafetensorsDirectory(Mapping[str, np.ndarray]):
    """The tensors of one model by name, read from disk one at a time.

    Args:
        directory: where the files are, or the one file, of any name.

    Raises:
        UserError: no safetensors there, a shard is missing, or a file is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, Path] = {}
        index = directory / INDEX
        if directory.is_file():
            paths = dict.fromkeys(_names(directory), directory)
        elif index.is_file() and not (directory / SINGLE).is_file():
            listed = read_json(index).get("weight_map")
            if not isinstance(listed, dict):
                raise UserError(f"{index} has no weight_map; the file is damaged, download it again")
            paths = {name: directory / _check_shard_name(index, shard) for name, shard in listed.items()}
        else:
            paths = dict.fromkeys(_names(_find_single(directory)), directory / SINGLE)
        self._handles = {path: _open(path) for path in sorted(set(paths.values()))}
        for name, path in paths.items():
            if name not in self._handles[path].keys():  # noqa: SIM118 - the handle is not a mapping
                raise UserError(f"{index} says that {name} is in {path.name}, which lacks it; download both again")
            self._files[name] = path

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._files[name]
        try:
            return np.asarray(self._handles[path].get_tensor(name))
        except (SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: tensor {name} cannot be read ({error}); it must be float32, float16 or bfloat16"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        UserError: the file is missing or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a language model's directory needs it, download it again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, must hold a JSON object; download it again")
    return content


def _find_single(directory: Path) -> Path:
    path = directory / SINGLE
    if path.is_file():
        return path
    pickled = sorted(file.name for file in directory.glob("*.bin"))
    if pickled:
        raise UserError(
            f"{directory} has weights as {pickled[0]} only, a pickle, which can run any code when read; convert it "
            "once with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors"
        )
    raise UserError(f"{directory} has neither {SINGLE} nor {INDEX}; put the model's weights there")


def _check_shard_name(index: Path, shard: Any) -> str:
    """Returns the shard's file name; a path out of the directory would read files that the user did not name."""
    if not isinstance(shard, str) or Path(shard).name != shard or not shard.isprintable():
        raise UserError(f"{index} names the shard {shard!r}, must be a file name beside it; download it again")
    return shard


def _names(path: Path) -> list[str]:
    return list(_open(path).keys())


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; download the model again") from error
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} ({size} bytes) is not a complete safetensors file ({error}); download it again"
        ) from error
