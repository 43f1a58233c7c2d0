"""`python -m frozen_jax.tools.controls --config=FILE --workdir=DIR`: the paper's controls of a run, in one table.

Trains what is not trained yet, each control in a folder of its own inside the run's workdir, evaluates each by the
config's task, and writes `controls.md` and `controls.json`. The same command again goes on where it was stopped, and
takes what is finished as it is. Settings are changed as in training, by `--config.section.name=value`.

    DIR/           seeing, and prefix_P of the config's own P
    DIR/blind/     blind: trained and asked on black pictures, on the very shots and episodes of the seeing run
    DIR/finetuned/, DIR/scratch/, DIR/lora/, DIR/adapter/, DIR/prompt/, DIR/prefix_1/, …

The run itself is `run.run`; nothing is measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from frozen_jax.adaptation_settings import describe_added
from frozen_jax.charts import BASELINES, list_charts
from frozen_jax.config import Config, from_config_dict, identify, to_dict
from frozen_jax.config_file import read_config
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.preemption import StopRequest
from frozen_jax.report import digest_measured
from frozen_jax.run import run
from frozen_jax.startup import keep_freed_memory
from frozen_jax.telemetry import format_table
from frozen_jax.workdir import read_json, write_json_atomic, write_text_atomic

PREFIXES = (1, 2, 4)
ADAPTED = ("lora", "adapter", "prompt")
ROWS = ("seeing", "blind", "finetuned", "scratch", *ADAPTED, *(f"prefix_{length}" for length in PREFIXES))
"""Rows of the table by default."""

MIXED = "mixed"
MIXED_FRACTION = 0.5
"""Share of training rows with a question in the row `mixed`, the paper's training with VQA data."""

LORA_RANK, ADAPTER_WIDTH, PROMPT_LENGTH = 8, 32, 8
"""Sizes of what trains beside the language model in the rows of `ADAPTED`, at the config's own rate."""

RATE_RATIO = 30.0
"""The paper trains the language model's controls at 1e-5 and the frozen one at 3e-4."""

LOOKED_AT = 100
"""Training records among which one must have a question for the row `mixed`."""

HEADER = ("measure", "row", "score", "shuffled", "language model", "best step", "validation loss")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        config: of the run that it is measured in.
        folder: of that run inside the workdir; "" is the workdir itself.
        view: which of that run's models.
    """

    config: Config
    folder: str = ""
    view: str = "seeing"


def plan_rows(config: Config, names: Sequence[str], *, lm_rate: float | None) -> dict[str, Row]:
    """Returns what each row is measured in; rows that share a run share its config.

    Args:
        config: the seeing run.
        names: rows that are wanted, of `ROWS` and `MIXED`; the seeing one is there always.
        lm_rate: learning rate of `finetuned` and `scratch`; None is a thirtieth of the config's, as in the paper.

    Raises:
        UserError: a name that is no row, or a config whose controls these are not.
    """
    wrong = [name for name in names if name not in (*ROWS, MIXED)]
    if wrong:
        raise UserError(f"--rows: there is no row {wrong[0]!r}; choose among {', '.join((*ROWS, MIXED))}")
    for name, value, wanted in (
        ("blind", config.blind, False),
        ("lm.mode", config.lm.mode, "frozen"),
        ("lm.lora_rank", config.lm.lora_rank, 0),
        ("adaptation", config.adapts_lm, False),
        ("vision.name ''", not config.vision.name, False),
        ("evaluate.task", config.evaluate.task in ("none", "scene_text") and config.evaluate.task, False),
    ):
        if value != wanted:
            raise UserError(
                f"config.{name} is {value!r}: controls are compared with a frozen language model that sees, by a task; "
                "give the config of that run, and evaluate.task"
            )
    blind = "blind" in names or config.evaluate.blind_control
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, blind_control=blind))
    rows = {"seeing": Row(config)}
    for name in names:
        if name == "blind":
            rows[name] = Row(config, view="blind")
        elif name != "seeing":
            rows[name] = _plan_run(config, name, lm_rate=lm_rate)
    return rows


def _plan_run(config: Config, name: str, *, lm_rate: float | None) -> Row:
    given = to_dict(config)
    given["evaluate"]["blind_control"] = False
    if name in ("finetuned", "scratch"):
        rate = config.optim.learning_rate / RATE_RATIO if lm_rate is None else lm_rate
        given["lm"] |= {"mode": name, "weights": "float"}
        given["optim"]["learning_rate"] = rate
    elif name == "lora":
        given["lm"]["lora_rank"] = LORA_RANK
    elif name == "adapter":
        given["adaptation"]["adapter_width"] = ADAPTER_WIDTH
    elif name == "prompt":
        given["adaptation"]["prompt_length"] = PROMPT_LENGTH
        _lengthen(given["data"], PROMPT_LENGTH * config.data.pack)
    elif name == MIXED:
        source = open_source(config.data.train)
        if not any(source.record(index).questions for index in range(min(LOOKED_AT, len(source)))):
            line = config.data.train
            raise UserError(f"--rows={MIXED}: data.train={line!r} has no questions to train on; leave it out")
        given["data"]["question_fraction"] = MIXED_FRACTION
    else:
        length = int(name.removeprefix("prefix_"))
        given["prefix"]["length"] = length
        _lengthen(given["data"], (length - config.prefix.length) * config.data.pack)
    changed = from_config_dict(given)
    return Row(config) if identify(changed) == identify(config) else Row(changed, folder=name)


def _lengthen(data: dict[str, Any], positions: int) -> None:
    """Gives rows so many positions more, so that as many words fit as before."""
    data["max_tokens"] += positions
    data["buckets"] = tuple(bucket + positions for bucket in data["buckets"])


def measure(row: Row, workdir: Path, *, stop: StopRequest | None = None) -> dict[str, Any]:
    """Returns the report of a row's run: the one that is there, if it is finished and of the same settings.

    Raises:
        UserError: as `run.run`.
    """
    directory = workdir / row.folder
    path = directory / f"{row.config.evaluate.report}.json"
    if path.exists():
        report = read_json(path)
        finished = report.get("train", {}).get("finished")
        if finished and report.get("config_digest") == digest_measured(row.config):
            print(f"{path} is finished", flush=True)
            return report
    return run(row.config, directory, mode="train", stop=stop)


def tabulate(rows: Mapping[str, Row], reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of the table: for each measure each row, then the answers without a picture, and chance.

    Args:
        rows: by name.
        reports: by folder, at least that of the seeing run; rows without one are left out.
    """
    charts = {folder: {chart.name: chart for chart in list_charts(report)} for folder, report in reports.items()}
    lines: list[dict[str, Any]] = []
    for measure, seeing in charts[""].items():
        title = f"{measure} {seeing.metric}"
        for name, row in rows.items():
            if row.folder not in reports:
                continue
            report, bars = reports[row.folder], charts[row.folder][measure].bars
            suffix = "_blind" if row.view == "blind" else ""
            train, frozen = report[f"train{suffix}"], report[f"frozen{suffix}"]
            line = {"measure": title, "row": name, "score": bars[row.view]}
            if row.view == "seeing" and "shuffled" in bars:
                line["shuffled"] = bars["shuffled"]
            same = frozen["lm_sha256_before"] == frozen["lm_sha256_after"]
            added = describe_added(row.config.adaptation, lora_rank=row.config.lm.lora_rank)
            line["language model"] = ("unchanged" if same else "trained") + added
            line |= {"best step": train["best_step"], "validation loss": train["best_validation_loss"]}
            lines.append(line | {"report": str(Path(row.folder, f"{row.config.evaluate.report}.json"))})
        without = {name: seeing.bars[name] for name in BASELINES if name in seeing.bars}
        without |= {} if seeing.chance is None else {"chance": seeing.chance}
        lines += [{"measure": title, "row": name, "score": score} for name, score in without.items()]
    return lines


def write_table(workdir: Path, config: Config, lines: Sequence[Mapping[str, Any]]) -> str:
    """Writes `controls.json` and `controls.md`, and returns the table."""
    write_json_atomic(workdir / "controls.json", {"config_digest": digest_measured(config), "lines": list(lines)})
    cells = [[_show(line.get(name)) for name in HEADER] for line in lines]
    table = format_table(HEADER, cells)
    task = config.evaluate.task
    reports = ", ".join(dict.fromkeys(f"`{line['report']}`" for line in lines if "report" in line))
    text = f"Scores are percentages, CIDEr-D x 100. Prompts, n, stop rule and spread are in {reports}."
    write_text_atomic(workdir / "controls.md", f"# Controls, by the task {task}\n\n{text}\n\n{table}\n")
    return table


def _show(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def compare(
    config: Config,
    workdir: Path,
    names: Sequence[str],
    *,
    lm_rate: float | None = None,
    stop: StopRequest | None = None,
) -> str:
    """Runs what is missing, writes the table after each run and returns it.

    Args:
        config: the seeing run.
        workdir: its workdir, in which the controls have theirs.
        names: rows of the table, the seeing one always among them.
        lm_rate: as for `plan_rows`.
        stop: what may ask a training to save and end.

    Raises:
        UserError: as `plan_rows` and `run.run`.
        Stopped: as `run.run`.
    """
    rows = plan_rows(config, names, lm_rate=lm_rate)
    reports: dict[str, Mapping[str, Any]] = {}
    table = ""
    for name, row in rows.items():
        if row.folder not in reports:
            print(f"row {name}: {workdir / row.folder}", flush=True)
            reports[row.folder] = measure(row, workdir, stop=stop)
            table = write_table(workdir, rows["seeing"].config, tabulate(rows, reports))
    return table


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs and prints the table; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.controls",
        description="Trains and evaluates the controls of a run and writes one table; --config=FILE as main has it.",
        epilog="example: python -m frozen_jax.tools.controls --config=configs/quickstart.py --workdir=runs/quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of the seeing run, finished, begun or not yet")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join((*ROWS, MIXED))}; by default all but it")
    parser.add_argument("--lm_rate", type=float, help="learning rate of finetuned and scratch; default a thirtieth")
    given, rest = parser.parse_known_args(arguments)
    with exit_in_one_line():
        names, config = [name.strip() for name in given.rows.split(",")], read_config(rest)
        keep_freed_memory()
        stop = StopRequest()
        stop.listen()
        table = compare(config, given.workdir, names, lm_rate=given.lm_rate, stop=stop)
    print(f"{table}\n{given.workdir / 'controls.md'}")


if __name__ == "__main__":
    main()
