"""The tables of docs/results.md: a real language model and real pictures, mean and spread over seeds.

    PYTHONPATH=. python benchmarks/results_table.py --out=runs [--seeds=0,1,2] [--only=report,emoji] [--config.…]

Trains `configs/stamps_smollm2.py:classes` once for each seed, in `OUT/stamps_seedN`, and measures each run by every
evaluation below, on held-out pictures alone; what is finished is taken as it is. Writes `results.md`, `results.json`.
The data must be there: see the config. The blind control is trained for the first seed alone, and asked in every table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import run_once
from frozen_jax.config_file import read_config
from frozen_jax.startup import keep_freed_memory
from frozen_jax.telemetry import format_table
from frozen_jax.tools import make_episodes

CONFIG = "configs/stamps_smollm2.py:classes"
STAMPS = "jsonl:data/fetched/stamps/heldout.jsonl"
EMOJI = "jsonl:data/fetched/emoji/heldout.jsonl"
KIND = "Question: What kind of thing is this? Answer:"
WAYS = (2, 5)

EVALUATIONS: Mapping[str, Sequence[str]] = {
    "report": (),
    "emoji": (f"caption.source={EMOJI}",),
    "kind": (
        "task=vqa",
        f"vqa.source={STAMPS}",
        "vqa.induction=",
        "vqa.query_format=[img] Question: {question} Answer:",
        "max_new_tokens=6",
    ),
    "category": (
        "task=classify",
        f"classify.source={STAMPS}",
        f"classify.prompts=('[img] {KIND}',)",
    ),
    "easy_vqa": ("task=vqa", "vqa.source=easy_vqa:test", "examples=300", "max_new_tokens=6"),
    **{
        f"binding_{ways}": (
            "task=fewshot",
            f"fewshot.episodes={{out}}/stamps_episodes_{ways}",
            f"fewshot.ways=({ways},)",
            "fewshot.induction=(True,)",
            "max_new_tokens=6",
        )
        for ways in WAYS
    },
    "retrieval": ("task=retrieval", f"retrieval.source={STAMPS}", "examples=50"),
}
"""By name of the report: settings of `evaluate`; {out} is the folder of the runs."""

ROWS: Sequence[tuple[str, str, str, str]] = (
    ("stamps: loss of the caption's tokens, nats", "report", "caption.{view}.nats_per_token", ""),
    ("stamps: noun, synonym or direct hypernym named", "report", "caption.{view}.noun", "caption.majority.noun"),
    ("stamps: head noun itself named", "report", "caption.{view}.noun_exact", "caption.majority.noun_exact"),
    ("stamps: CIDEr-D x 100", "report", "caption.{view}.cider_d", "caption.majority.cider_d"),
    ("stamps: exact caption", "report", "caption.{view}.exact_match", "caption.majority.exact_match"),
    ("emoji: loss of the caption's tokens, nats", "emoji", "caption.{view}.nats_per_token", ""),
    ("emoji: noun, synonym or direct hypernym named", "emoji", "caption.{view}.noun", "caption.majority.noun"),
    ("emoji: CIDEr-D x 100", "emoji", "caption.{view}.cider_d", "caption.majority.cider_d"),
    ("category, open answer", "kind", "vqa.shots_0.{view}.accuracy", "vqa.majority.accuracy"),
    ("category, of 14 by log-probability", "category", "classify.{view}.top_1", "classify.majority"),
    ("… less what a name is worth after the mean picture", "category", "classify.{view}.less_prior_top_1", ""),
    *(
        (
            f"caption to picture, of 50, R@{k}",
            "retrieval",
            f"retrieval.likelihood.{{view}}.text_to_image_r_{k}",
            f"retrieval.likelihood.chances.text_to_image_r_{k}",
        )
        for k in (1, 5)
    ),
    ("easy-VQA, answers right", "easy_vqa", "vqa.shots_0.{view}.accuracy", "vqa.majority.accuracy"),
    *(
        (
            f"new words, {ways} ways",
            f"binding_{ways}",
            f"fewshot.ways_{ways}_shots_1_repeats_0_induction.{{view}}.strict",
            f"fewshot.ways_{ways}_shots_1_repeats_0_induction.chance",
        )
        for ways in WAYS
    ),
)
"""What the row is, the report, and where a view's figure and that of chance or the commonest answer stand in it."""

VIEWS = {"seeing": "seeing", "shuffled": "shuffled", "blind": "blind", "text_oracle": "in words"}
"""What a report calls a control, and what it is called here; in words: captions stand in the pictures' places."""


def look_up(report: Mapping[str, Any], path: str) -> float | None:
    """Returns the figure at a dotted path; None where there is none."""
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def summarise(values: Sequence[float | None]) -> str:
    """Returns the mean over seeds with its standard deviation; "" where no seed has a figure."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{np.mean(known):.3g}" if abs(np.mean(known)) < 10 else f"{np.mean(known):.1f}"
    return mean if len(known) == 1 else f"{mean} ± {np.std(known, ddof=1):.2g}"


def write_episodes(out: Path) -> None:
    """Writes the episodes of new words, of held-out stamps, that are not there yet."""
    for ways in WAYS:
        folder = out / f"stamps_episodes_{ways}"
        if not folder.exists():
            arguments = [f"--source={STAMPS}", "--tag=0", f"--out={folder}", f"--ways={ways}", "--shots=1"]
            make_episodes.main([*arguments, "--count=100", "--seed=0", "--size=224"])


def main() -> None:
    """Parses the command line, runs what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description="Results over seeds.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the tables")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(EVALUATIONS), help=f"of {', '.join(EVALUATIONS)}")
    given, rest = parser.parse_known_args()
    keep_freed_memory()
    write_episodes(given.out)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    reports: dict[str, list[dict[str, Any]]] = {}
    for name in given.only.split(","):
        words = [f"--config.evaluate.{word.replace('{out}', str(given.out))}" for word in EVALUATIONS[name]]
        for seed in seeds:
            run = [f"--config.seed={seed}", f"--config.evaluate.blind_control={seed == seeds[0]}"]
            config = read_config([f"--config={CONFIG}", *run, *rest, f"--config.evaluate.report={name}", *words])
            reports.setdefault(name, []).append(run_once(config, given.out / f"stamps_seed{seed}"))
        (given.out / "results.md").write_text(draw_table(reports, seeds))
        (given.out / "results.json").write_text(json.dumps(reports, indent=2) + "\n")
    print((given.out / "results.md").read_text())


def draw_table(reports: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int]) -> str:
    """Returns the table of what has been measured."""
    rows = []
    for title, name, path, baseline in ROWS:
        measured = reports.get(name, ())
        if measured:
            cells = [summarise([look_up(report, path.format(view=view)) for report in measured]) for view in VIEWS]
            rows.append([title, *cells, summarise([look_up(measured[0], baseline)]) if baseline else ""])
    table = format_table(("percent, or as said", *VIEWS.values(), "chance, commonest"), rows)
    return f"Held-out pictures; mean and standard deviation of seeds {', '.join(map(str, seeds))}.\n\n{table}\n"


if __name__ == "__main__":
    main()
