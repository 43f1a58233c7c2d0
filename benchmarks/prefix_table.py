"""Prefix designs by number of vectors in one table: seeing, without the picture, and captions, on easy-VQA.

    PYTHONPATH=. python benchmarks/prefix_table.py --out=runs/prefix_table \\
      [--kinds=linear,mlp] [--lengths=1,2,4] [--config.…]

Trains and evaluates `configs/quickstart.py` once for each kind and length, in workdirs below `--out`, where what is
finished is taken as it is; `patches` has one length, the number of places. Writes `prefix.md` and `prefix.json` after
each. `--config.evaluate.blind_control=False` halves the time and leaves the blind column empty.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from benchmarks.common import run_once
from frozen_jax.build import count_places
from frozen_jax.config import Config, from_config_dict, to_dict
from frozen_jax.config_file import read_config
from frozen_jax.models.vision import build_vision
from frozen_jax.prefix_settings import PrefixKind
from frozen_jax.startup import keep_freed_memory
from frozen_jax.telemetry import format_table

CONFIG = "configs/quickstart.py"
HEADER = ("prefix", "P", "questions", "shuffled", "blind", "captions exact", "steps")


def plan(words: list[str], kind: str, length: int) -> Config:
    """The run of one cell: as many words fit as in the config itself."""
    config = read_config(words)
    given = to_dict(config)
    given["prefix"] |= {"kind": kind, "length": length}
    given["data"]["max_tokens"] += length - config.prefix.length
    return from_config_dict(given)


def summarise(config: Config, report: dict[str, Any]) -> dict[str, Any]:
    """The line of one run; percentages."""
    vqa, caption = report["vqa"], report["caption"]
    return {
        "prefix": config.prefix.kind,
        "P": config.prefix.length,
        "questions": vqa["seeing"]["accuracy"],
        "shuffled": vqa["shuffled"]["accuracy"],
        "blind": vqa["blind"]["accuracy"] if "blind" in vqa else None,
        "captions exact": caption["seeing"]["exact_match"],
        "steps": report["train"]["steps"],
        "n": vqa["seeing"]["questions"],
        "versions": report["versions"],
    }


def main() -> None:
    """Parses the command line, runs what is missing and writes the table."""
    kinds = get_args(PrefixKind)
    parser = argparse.ArgumentParser(description="Prefix designs in one table.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the workdirs and the table")
    parser.add_argument("--kinds", default=",".join(kinds), help=f"of {', '.join(kinds)}")
    parser.add_argument("--lengths", default="1,2,4,8,16,32", help="numbers of vectors, P")
    given, rest = parser.parse_known_args()
    keep_freed_memory()
    words = [f"--config={CONFIG}", *rest]
    config = read_config(words)
    places = count_places(config, build_vision(config.vision.name, **config.vision.options))
    lines: list[dict[str, Any]] = []
    for kind in given.kinds.split(","):
        lengths = [places] if kind == "patches" else [int(length) for length in given.lengths.split(",")]
        for length in lengths:
            cell = plan(words, kind, length)
            lines.append(summarise(cell, run_once(cell, given.out / f"{kind}_{length}")))
            shown = [["" if line[name] is None else str(line[name]) for name in HEADER] for line in lines]
            table = format_table(HEADER, shown)
            (given.out / "prefix.md").write_text(f"{lines[0]['n']} questions of easy-VQA's test; percent.\n\n{table}\n")
            (given.out / "prefix.json").write_text(json.dumps(lines, indent=2) + "\n")
            print(table, flush=True)


if __name__ == "__main__":
    main()
