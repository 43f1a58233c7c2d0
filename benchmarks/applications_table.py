"""Retrieval, classes and tags of one source in one table, over seeds, beside what is known without the model.

    PYTHONPATH=. python benchmarks/applications_table.py --source=easy_vqa --out=runs/applications [--seeds=0,1,2]
    PYTHONPATH=. python benchmarks/applications_table.py --source=stamps --out=runs/applications \\
        --workdirs=runs/stamps_seed{seed} [--applications=classes,tags] [--config.…]

Runs on easy-VQA (`configs/quickstart.py:retrieval`) are trained where they are not there yet, in workdirs below
`--out`; those on stamps and emoji (`configs/stamps_smollm2.py:classes`, one training for both) have to be there,
trained with the seeds that are named. What was measured before with the same settings is taken from its report. Writes
SOURCE.md and SOURCE.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import run_once
from benchmarks.results_table import KIND
from frozen_jax.config import Config
from frozen_jax.config_file import read_config
from frozen_jax.data.easy_vqa import disclose
from frozen_jax.data.sources import open_source
from frozen_jax.data.tables import existing_file
from frozen_jax.fetch.emoji import QUESTION
from frozen_jax.metrics.retrieval import hit_by_chance
from frozen_jax.startup import keep_freed_memory
from frozen_jax.tasks.retrieval import order_questions
from frozen_jax.telemetry import format_table
from frozen_jax.workdir import write_text_atomic

CONFIGS = {
    "easy_vqa": "configs/quickstart.py:retrieval",
    "stamps": "configs/stamps_smollm2.py:classes",
    "emoji": "configs/stamps_smollm2.py:classes",
}

EMOJI = Path("data/fetched/emoji")
GROUP = f"Question: {QUESTION} Answer:"

HELD_OUT = {
    "easy_vqa": "easy_vqa:test",
    "stamps": "jsonl:data/fetched/stamps/heldout.jsonl",
    "emoji": f"jsonl:{EMOJI}/heldout.jsonl",
}
LEARNT = {
    "easy_vqa": "easy_vqa:train",
    "stamps": "jsonl:data/fetched/stamps/train.jsonl",
    "emoji": f"jsonl:{EMOJI}/train.jsonl",
}

TASKS = {"retrieval": "retrieval", "classes": "classify", "tags": "tag"}

SETTINGS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "easy_vqa": {
        "retrieval": ["retrieval.turns=(1, 2, 3)"],
        "classes": ["classify.prompts=('[img]', '[img] a', '[img] there is a', '[img] the image contains a')"],
        "tags": [],
    },
    # A stamp's tag is its folder. An emoji's class is its group in Unicode's list, its tags are CLDR's keywords
    # (`list_pictures`), words of captions. Of all 1,380 pictures they would be 43, not 14, and the texts to score
    # six times as many.
    "stamps": {
        "retrieval": [],
        "classes": ["classify.tag=0", f"classify.prompts=('[img] {KIND}',)"],
        "tags": [f"tag.prompt=[img] {KIND}", f"tag.list_prompt=[img] {KIND}"],
    },
    "emoji": {
        "retrieval": [],
        "classes": ["classify.tag=0", f"classify.prompts=('[img] {GROUP}',)"],
        "tags": ["tag.prompt=[img] A", "tag.calibrated_on=600"],
    },
}
"""Settings of `evaluate` by source and application, where they are not the task's own."""

METHODS = {
    "likelihood": "caption's log-probability per token",
    "likelihood_prior": "the same less that after the mean picture",
    "states": "mean LM states",
    "ret": "`[RET]`",
    "prefix": "mean prefix vectors",
    "dialogue": "`[RET]` behind all turns",
    "dialogue_added": "`[RET]` behind each turn, added",
    "ret_prompt": "`[RET]` behind picture and caption",
}
"""Those of `tasks.retrieval.METHODS` in few words."""

DIRECTIONS = {"text_to_image": "caption → picture", "image_to_text": "picture → caption"}
HEADER = ("application", "by", "measure", "percent", "pictures shuffled", "further", "without the model", "chance")


class Line(NamedTuple):
    """One row of the table, of one run.

    Attributes:
        application: what is looked for by what.
        by: the method.
        measure: what `score` is, in percent.
        score: of the model, or of the probe that `by` names.
        shuffled: likewise, with each picture in another's place.
        further: other measures of the same answers.
        baseline: what is reached without the model, in words.
        chance: in percent.
    """

    application: str
    by: str
    measure: str
    score: float
    shuffled: float | None = None
    further: str = ""
    baseline: str = ""
    chance: float | None = None


def list_pictures(source: str, application: str, *, out: Path) -> tuple[str, str]:
    """Returns the lines of the held-out pictures and of those to learn from, with the tags that are asked for.

    The first tag of an emoji is its group, in capitals as Unicode has it. As a class it is the answer of the records'
    question, in lower case as in training; the keywords behind it are written into tables of their own below `out`, for
    a group in each of them would be most of what is right.
    """
    if source == "emoji" and application == "classes":
        return f"{HELD_OUT[source]}?tags=answer", f"{LEARNT[source]}?tags=answer"
    if source == "emoji" and application == "tags":
        return write_keywords("heldout", out=out), write_keywords("train", out=out)
    return HELD_OUT[source], LEARNT[source]


def write_keywords(split: str, *, out: Path) -> str:
    """Writes pictures and keywords of emoji as a table, and returns its line."""
    rows = map(json.loads, existing_file(EMOJI / f"{split}.jsonl").read_text("utf-8").splitlines())
    lines = [json.dumps({"image": row["image"], "tags": row["tags"][1:]}, ensure_ascii=False) for row in rows]
    path = out / f"emoji_keywords_{split}.jsonl"
    write_text_atomic(path, "".join(f"{line}\n" for line in lines))
    return f"jsonl:{path}?root={EMOJI}"


def read_retrieval(report: Mapping[str, Any], config: Config) -> Iterator[Line]:
    """Yields the lines of retrieval, in its report's order."""
    figures = report["retrieval"]
    for method in METHODS:
        for direction, title in DIRECTIONS.items() if method in figures and "dialogue" not in method else ():
            row, key = figures[method], f"{direction}_r_1"
            further = _describe_ranks(row["seeing"], direction)
            shuffled, chance = row["shuffled"][key], row["chances"][key]
            yield Line(title, METHODS[method], "R@1", row["seeing"][key], shuffled, further, chance=chance)
    known = read_dialogues(config) if "dialogue" in figures else {}
    for method in ("dialogue", "dialogue_added"):
        for turns, best in known.items():
            row = figures[method][f"turns_{turns}"]
            further = _describe_ranks(row["seeing"], "text_to_image")
            seeing, shuffled = (row[view]["text_to_image_r_1"] for view in ("seeing", "shuffled"))
            title = f"{turns} answered question{'s' * (turns > 1)} → picture"
            baseline = f"best possible {best:.1f}"
            yield Line(title, METHODS[method], "R@1", seeing, shuffled, further, baseline, row["chance"])
    for method, row in figures.get("image_to_image", {}).items():
        if isinstance(row, Mapping):
            seeing, shuffled = (row[view]["image_to_image_r_1"] for view in ("seeing", "shuffled"))
            further = _describe_ranks(row["seeing"], "image_to_image")
            yield Line("picture → picture", METHODS[method], "R@1", seeing, shuffled, further, chance=row["chance"])


def read_dialogues(config: Config) -> dict[int, float]:
    """Returns R@1 of one who draws, for each dialogue of easy-VQA, among all pictures of scenes that it allows."""
    source = open_source(config.evaluate.retrieval.source)
    records = [source.record(index) for index in range(config.evaluate.examples or len(source))]
    records = [record for record in records if record.captions]
    pictures = Counter(record.tags for record in records)
    found: dict[int, list[float]] = {}
    for row, record in enumerate(records):
        told = [disclose(q.text, q.answers[0]) for q in order_questions(record, row, seed=config.seed)]
        for turns in config.evaluate.retrieval.turns:
            if turns > len(told):
                continue
            shown, lacking = (set().union(*sides) for sides in zip(*told[:turns], strict=True))
            fitting = sum(count for tags, count in pictures.items() if shown <= {*tags} and not lacking & {*tags})
            share = hit_by_chance(gallery=fitting, right=pictures[record.tags], k=1)
            found.setdefault(turns, []).append(100 * share)
    return {turns: float(np.mean(shares)) for turns, shares in found.items()}


def read_classes(report: Mapping[str, Any], _: Config) -> Iterator[Line]:
    """Yields the lines of classes: by names, and by heads on the encoder's features."""
    figures = report["classify"]
    baseline = f"commonest class {figures['majority']:.1f}"
    for section, by in {
        "classify": "name's log-probability per token",
        "classify_linear_probe": "linear probe on the features",
        "classify_head": "head with a hidden layer",
    }.items():
        row = report[section]
        seeing, shuffled = row["seeing"], row.get("shuffled", {}).get("top_1")
        further = f"ECE {seeing['ece']:.1f}"
        if "top_5" in seeing:
            further = f"top-5 {seeing['top_5']:.1f}, {further}"
        if "less_prior_top_1" in seeing:
            further += f"; less that after the mean picture {seeing['less_prior_top_1']:.1f}"
        title = f"{figures['classes']} classes"
        yield Line(title, by, "top-1", seeing["top_1"], shuffled, further, baseline, figures["chance"])


def read_tags(report: Mapping[str, Any], _: Config) -> Iterator[Line]:
    """Yields the lines of tags: scored, written, and by a probe."""
    figures, written = report["tag"], report["tag_generated"]
    title, often, chance = f"{figures['tags']} tags", figures["frequency"], figures["chance"]
    for by, row in (("score", figures), (f"linear probe, {figures['probe_n']} pictures", None)):
        seeing = figures["linear_probe"] if row is None else row["seeing"]
        shuffled = None if row is None else row["shuffled"]["map"]
        further = f"micro-F1 {seeing['micro_f1']:.1f}, macro-F1 {seeing['macro_f1']:.1f}"
        yield Line(title, by, "mAP", seeing["map"], shuffled, further, f"frequency {often['map']:.1f}", chance)
    seeing = written["seeing"]
    further, baseline = f"macro-F1 {seeing['macro_f1']:.1f}", f"frequency {often['micro_f1']:.1f}"
    yield Line(title, "written", "micro-F1", seeing["micro_f1"], written["shuffled"]["micro_f1"], further, baseline)


READERS = {"retrieval": read_retrieval, "classes": read_classes, "tags": read_tags}


def summarise(runs: Sequence[Sequence[Line]]) -> list[dict[str, Any]]:
    """Joins the lines of several runs: means, the score's spread, and what else was measured in the first of them."""
    rows = []
    for lines in zip(*runs, strict=True):
        scores = [line.score for line in lines]
        row = lines[0]._asdict() | {"score": round(float(np.mean(scores)), 2), "by_seed": scores}
        if lines[0].shuffled is not None:
            row["shuffled"] = round(float(np.mean([line.shuffled for line in lines])), 2)
        row["spread"] = round(float(np.std(scores, ddof=1)), 2) if len(scores) > 1 else None
        rows.append(row)
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lays the rows out as a table."""

    def shown(value: float | None, spread: float | None = None) -> str:
        return "" if value is None else f"{value:.1f}" + ("" if spread is None else f" ± {spread:.1f}")

    cells = [
        [
            *(row["application"], row["by"], row["measure"], shown(row["score"], row["spread"])),
            *(shown(row["shuffled"]), row["further"], row["baseline"], shown(row["chance"])),
        ]
        for row in rows
    ]
    return format_table(HEADER, cells)


def main() -> None:
    """Parses the command line, measures what is missing and writes the table after each application."""
    parser = argparse.ArgumentParser(description="The applications of a source in one table.", allow_abbrev=False)
    parser.add_argument("--source", required=True, choices=sorted(CONFIGS), help="what is looked at")
    parser.add_argument("--out", type=Path, required=True, help="folder of the table, and of runs that are trained")
    parser.add_argument("--workdirs", default="", help="of the trained runs, with {seed}; easy_vqa trains its own")
    parser.add_argument("--seeds", default="0,1,2", help="of the runs")
    parser.add_argument("--applications", default=",".join(TASKS), help=f"of {', '.join(TASKS)}")
    given, rest = parser.parse_known_args()
    if not given.workdirs and given.source != "easy_vqa":
        parser.error(f"--source={given.source} is measured of trained runs; name them by --workdirs=runs/NAME{{seed}}")
    keep_freed_memory()
    source, seeds = given.source, [int(seed) for seed in given.seeds.split(",")]
    workdirs = given.workdirs or str(given.out / f"{source}_{{seed}}")
    given.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for application in given.applications.split(","):
        task = TASKS[application]
        held_out, learnt = list_pictures(source, application, out=given.out)
        settings = [f"task={task}", f"report={application}", "blind_control=False", f"{task}.source={held_out}"]
        settings += SETTINGS[source][application]
        if application == "classes":
            settings += [f"classify.shot_source={learnt}", "classify.heads=True"]
        if application == "tags":
            settings.append(f"tag.calibration={learnt}")
        words = [f"--config={CONFIGS[source]}", *(f"--config.evaluate.{setting}" for setting in settings), *rest]
        lines, reports = [], []
        for seed in seeds:
            asked = [*words, f"--config.seed={seed}"]
            workdir = Path(workdirs.format(seed=seed))
            config = read_config(asked)
            report = run_once(config, workdir, mode="eval" if given.workdirs else "train")
            lines.append(list(READERS[application](report, config)))
            reports.append(report)
        rows += summarise(lines)
        table = show(rows)
        about = f"{source}, held-out pictures, seeds {given.seeds}; mean and standard deviation."
        (given.out / f"{source}.md").write_text(f"{about}\n\n{table}\n", encoding="utf-8")
        content = {"rows": rows, "seeds": seeds, "versions": reports[0]["versions"]}
        (given.out / f"{source}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        print(table, flush=True)


def _describe_ranks(row: Mapping[str, float], direction: str) -> str:
    recalls = " / ".join(f"{row[f'{direction}_r_{k}']:.1f}" for k in (5, 10))
    return f"R@5 / 10 {recalls}; median rank {row[f'{direction}_median_rank']:g}"


if __name__ == "__main__":
    main()
