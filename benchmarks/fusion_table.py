"""Kinds of fusion in one table: text alone, image alone and each way to join them, over seeds.

    PYTHONPATH=. python benchmarks/fusion_table.py --out=runs/fusion_table [--seeds=3] [--kinds=text,image] [--config.…]

Trains and evaluates `configs/easy_vqa_fusion.py`, or what `--config=FILE` names, once for each kind and seed, in
workdirs below `--out`, where what is finished is taken as it is; writes `fusion.md`, `fusion.json` and `fusion.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import replace_flags, run_once
from frozen_jax.config import from_config_dict, to_dict
from frozen_jax.config_file import read_config
from frozen_jax.models.fusion import KINDS
from frozen_jax.startup import keep_freed_memory
from frozen_jax.telemetry import format_table

CONFIG = "configs/easy_vqa_fusion.py"

ORDER = ("text", "image", *(kind for kind in KINDS if kind not in ("text", "image")))


def measure(words: list[str], out: Path, kind: str, seed: int) -> dict[str, Any]:
    """Returns the report of one kind and seed, trained where it is not there yet."""
    given = to_dict(read_config(words))
    given["fusion"]["kind"], given["seed"] = kind, seed
    config = from_config_dict(given)
    return run_once(config, out / f"{kind}_{seed}")


def summarise(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the spread of the accuracy."""
    seeing = [report["fusion"]["seeing"] for report in reports]
    top = [row["top_1"] for row in seeing]
    return {
        "top_1": round(float(np.mean(top)), 2),
        "spread": round(float(np.std(top, ddof=1)), 2) if len(top) > 1 else None,
        "shuffled": round(float(np.mean([report["fusion"]["shuffled"]["top_1"] for report in reports])), 2),
        "neighbour_r_1": round(float(np.mean([row["neighbours"]["r_1"] for row in seeing])), 2),
        "by_seed": top,
    }


def draw(rows: dict[str, dict[str, Any]], lines: dict[str, float], path: Path) -> None:
    """Draws accuracies as bars, and what is known without both sides as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.4), layout="constrained")
    names = [kind.replace("_", "\n") for kind in rows]
    axes.bar(
        names,
        [row["top_1"] for row in rows.values()],
        yerr=[row["spread"] or 0 for row in rows.values()],
        color="#4c72b0",
    )
    axes.bar(names, [row["shuffled"] for row in rows.values()], color="#c7d3e8", width=0.4)
    for place, row in enumerate(rows.values()):
        axes.text(place, row["top_1"] + (row["spread"] or 0) + 1, f"{row['top_1']:.1f}", ha="center")
    for (name, value), style in zip(lines.items(), (":", "--"), strict=True):
        axes.axhline(value, color="#555555", linestyle=style, linewidth=1)
        axes.text(len(rows) - 0.5, value, name.replace(" to", "\nto"), va="center", fontsize=8, backgroundcolor="white")
    axes.set_xlim(-0.6, len(rows) + 0.6)
    axes.set_ylim(0, 109)
    axes.set_ylabel("right, %")
    axes.set_title("By kind of fusion; narrow: pictures shuffled", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Parses the command line, runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description="Kinds of fusion in one table.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the workdirs and the table")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind, with the seeds 0, 1, …")
    parser.add_argument("--kinds", default=",".join(ORDER), help=f"of {', '.join(ORDER)}")
    given, rest = parser.parse_known_args()
    keep_freed_memory()
    words = replace_flags([f"--config={CONFIG}"], rest)
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, float] = {}
    for kind in given.kinds.split(","):
        reports = [measure(words, given.out, kind, seed) for seed in range(given.seeds)]
        rows[kind] = summarise(reports)
        first = reports[0]["fusion"]
        lines = {"commonest answer": first["majority"], "commonest answer to the question": first["question_only"]}
        header = ["fusion", "top 1", "spread", "pictures shuffled", "neighbour R@1"]
        shown = [
            [name, *(str(row[key] or "") for key in ("top_1", "spread", "shuffled", "neighbour_r_1"))]
            for name, row in rows.items()
        ]
        table = format_table(header, shown + [[name, str(value), "", "", ""] for name, value in lines.items()])
        about = (
            f"{first['n']} items of {first['source']}, {first['classes']} classes, {given.seeds} seed(s); in percent."
        )
        (given.out / "fusion.md").write_text(f"{about}\n\n{table}\n")
        settings = dataclasses.asdict(read_config(words).fusion)
        content = {
            "rows": rows,
            "lines": lines,
            "n": first["n"],
            "versions": reports[0]["versions"],
            "fusion": settings,
        }
        (given.out / "fusion.json").write_text(json.dumps(content, indent=2) + "\n")
        draw(rows, lines, given.out / "fusion.png")
        print(table, flush=True)


if __name__ == "__main__":
    main()
