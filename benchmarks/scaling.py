"""Does a larger frozen language model help? Small ones of several sizes, each made, frozen and asked in the same way.

    PYTHONPATH=. python benchmarks/scaling.py vqa --out=runs/scaling_vqa [--sizes=16x2,64x4]
    PYTHONPATH=. python benchmarks/scaling.py binding --out=runs/scaling_binding [--sizes=16x2,32x2]

`vqa`: for each size, units x layers, a text stage (`configs/text_pretrain.py`), then a vision stage through its
language model (`configs/quickstart.py`), both with two pairs in half of the rows, so that one prompt may hold several
pictures; asked are easy-VQA's test questions after 0, 1 and 2 answered ones about other pictures. `binding`:
docs/binding.md without the stage on long texts, which short episodes do not need; then episodes of 2 and of 5 ways.

Steps, seed and batches are the same for all sizes. Workdirs stand below `--out`, where what is finished is taken as it
is; a table (Markdown), its figures (JSON) and a picture are written there anew after each size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import change, run_once
from frozen_jax.config import Config
from frozen_jax.config_file import read_config
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.data.sources import open_source
from frozen_jax.restore import END_OF_TEXT
from frozen_jax.startup import keep_freed_memory
from frozen_jax.tasks.episodes import write_episodes
from frozen_jax.telemetry import format_table
from frozen_jax.tools.make_episodes import make_episodes

HEADS = 4

SHOTS = (0, 1, 2)
"""With more, pictures would stand at positions that no training text of two pairs reaches."""

ASKED: Mapping[str, Any] = {
    "source": "easy_vqa:test?pictures=all",
    "shot_source": "easy_vqa:train",
    "shots": SHOTS,
    "induction": "",
    "query_format": "[img] Question: {question} Answer:",
    "shot_format": f"[img] Question: {{question}} Answer: {{answer}}{END_OF_TEXT}",  # as pairs stand in training rows
}

WAYS = (2, 5)
TASK = "open_ended_mi"
POINT = "ways_{}_shots_1_repeats_0_induction"

VIEWS = {"seeing": "seeing", "shuffled": "shuffled", "text_oracle": "words"}
"""Rows of a report, and what they are called here."""

COMMON = ("size", "parameters", "text loss", "caption loss")


class Size(NamedTuple):
    """Of a language model."""

    units: int
    layers: int

    def __str__(self) -> str:
        return f"{self.units}x{self.layers}"


def read_sizes(text: str) -> list[Size]:
    """Reads "16x2,64x4".

    Raises:
        ValueError: something else, or units that the heads do not divide.
    """
    sizes = [Size(*map(int, word.split("x", 1))) for word in text.split(",")]
    if any(size.units % HEADS or min(size) < 1 for size in sizes):
        raise ValueError(text)
    return sizes


def plan_vqa(options: argparse.Namespace, size: Size) -> dict[str, Config]:
    """The text stage and the vision stage of one size, by the names of their workdirs."""
    shared = {"data": {"pair_probability": 0.5}, "evaluate": {"blind_control": False, "examples": options.examples}}
    text = change(read_config(["--config=configs/text_pretrain.py"]), shared)
    vision = change(read_config(["--config=configs/quickstart.py"]), shared)
    # The logits of all sizes then begin equally large; the config's own 0.1 is for 64 units.
    spread = 0.8 / size.units**0.5
    architecture = {"n_embd": size.units, "n_layer": size.layers, "n_head": HEADS, "initializer_range": spread}
    return plan_stages(options, size, text, vision, architecture)


def measure_vqa(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Trains one size and asks it about test pictures; returns the line of the table, percentages."""
    directory, plan = options.out / str(size), plan_vqa(options, size)
    text, vision = (run_once(config, directory / name) for name, config in plan.items())
    asking = {"evaluate": {"task": "vqa", "report": "shots", "max_new_tokens": 4, "vqa": ASKED}}
    vqa = run_once(change(plan["vision"], asking), directory / "vision", mode="eval")["vqa"]
    line = describe(size, directory / "text", text, vision) | {
        "words": vision["vqa"]["text_oracle"],
        "captions exact": vision["caption"]["seeing"]["exact_match"],
        "question alone": vision["vqa"]["question_only"],
        "n": vqa["n"],
    }
    for count in SHOTS:
        views = vqa[f"shots_{count}"]
        line |= {f"shots {count}": views["seeing"]["accuracy"], f"shuffled {count}": views["shuffled"]["accuracy"]}
    return line


def plan_binding(options: argparse.Namespace, size: Size) -> dict[str, Config]:
    """The text stage and the vision stage of one size, by the names of their workdirs."""
    episodes = make_missing_episodes(options.out, count=options.examples)
    grid = {"episodes": str(episodes), "ways": WAYS, "inner_shots": (1,), "repeats": (0,), "induction": (True,)}
    shared = {"evaluate": {"blind_control": False, "fewshot": grid}}
    text = change(read_config(["--config=configs/binding_text.py"]), shared)
    vision = change(read_config(["--config=configs/binding.py"]), shared)
    architecture = {
        "hidden_size": size.units,
        "intermediate_size": 2 * size.units,
        "num_hidden_layers": size.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
    }
    return plan_stages(options, size, text, vision, architecture)


def plan_stages(
    options: argparse.Namespace, size: Size, text: Config, vision: Config, architecture: Mapping[str, Any]
) -> dict[str, Config]:
    """Both stages with the steps of the command line, none ended early; the second freezes what the first makes."""
    steps = {"steps": options.vision_steps, "patience": 0}
    return {
        "text": change(text, {"lm": {"architecture": architecture}, "train": {"steps": options.text_steps}}),
        "vision": change(vision, {"lm": {"path": str(options.out / str(size) / "text" / "lm")}, "train": steps}),
    }


def make_missing_episodes(out: Path, *, count: int) -> Path:
    """Writes the episodes of `docs/binding.md`, so many of each number of ways; returns their folder."""
    folder = out / f"episodes_{count}"
    for ways in WAYS:
        if not (folder / f"{TASK}_shots_1_ways_{ways}_all_questions.json").exists():
            source = open_source("easy_vqa:test")
            made = make_episodes(source, ways=ways, shots=1, count=count, seed=0, tag=-1, real_names=False, size=64)
            write_episodes(folder, task=TASK, ways=ways, shots=1, episodes=made)
    return folder


def measure_binding(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Trains one size and asks it by new names; returns the line of the table, strict accuracies in percent."""
    directory = options.out / str(size)
    text, vision = (run_once(config, directory / name) for name, config in plan_binding(options, size).items())
    line = describe(size, directory / "text", text, vision)
    for ways in WAYS:
        point = vision["fewshot"][POINT.format(ways)]
        line |= {f"{said} {ways}": point[view]["strict"] for view, said in VIEWS.items()}
        line |= {f"chance {ways}": point["chance"], "n": point["n"]}
    return line


def describe(size: Size, text_stage: Path, text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a size in both tables: losses in nats per token, on the validation data of each stage."""
    tensors = SafetensorsDirectory(text_stage / "lm")
    return {
        "size": str(size),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "text loss": text["train"]["best_validation_loss"],
        "caption loss": vision["train"]["best_validation_loss"],
        "steps": {"text": text["train"]["steps"], "vision": vision["train"]["steps"]},
        "versions": vision["versions"],
    }


def draw(panels: Sequence[tuple[str, Mapping[str, str], str]], lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws percentages over parameters.

    Args:
        panels: title, lines by column with their style, and the column of what needs no picture.
        lines: of the table.
        path: a PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), layout="constrained", sharey=True)
    lines = sorted(lines, key=lambda line: line["parameters"])
    sizes = [line["parameters"] for line in lines]
    for axis, (title, columns, blind) in zip(axes, panels, strict=True):
        for column, style in columns.items():
            axis.plot(sizes, [line[column] for line in lines], style, label=column)
        axis.plot(sizes, [line[blind] for line in lines], ":", color="gray", label=blind)
        axis.set(title=title, xlabel="parameters of the language model", xscale="log", ylim=(0, 102))
        axis.set_xticks(sizes, [f"{line['size']}\n{line['parameters']:,}" for line in lines], fontsize=8)
        axis.minorticks_off()
        axis.legend(fontsize="small")
    axes[0].set_ylabel("percent right")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


PARTS = {"vqa": measure_vqa, "binding": measure_binding}

ITEMS = {"vqa": "test questions of easy-VQA", "binding": "episodes of each number of ways"}

SEEN, SHUFFLED = ([f"{name} {count}" for count in SHOTS] for name in ("shots", "shuffled"))

COLUMNS = {
    "vqa": (*COMMON, "words", *SEEN, *SHUFFLED, "question alone", "captions exact"),
    "binding": (*COMMON, *(f"{said} {ways}" for ways in WAYS for said in (*VIEWS.values(), "chance"))),
}

PANELS: dict[str, list[tuple[str, Mapping[str, str], str]]] = {
    "vqa": [
        (
            "questions, after so many shots",
            {"words": "C7-s", **dict(zip(SEEN, ("C0-o", "C1-o", "C2-o"), strict=True))},
            "question alone",
        ),
        ("pictures shuffled", dict(zip(SHUFFLED, ("C0--o", "C1--o", "C2--o"), strict=True)), "question alone"),
    ],
    "binding": [
        (
            f"new names, {ways} ways, 1 inner-shot",
            {f"words {ways}": "C7-s", f"seeing {ways}": "C0-o", f"shuffled {ways}": "C0--o"},
            f"chance {ways}",
        )
        for ways in WAYS
    ],
}


def main() -> None:
    """Parses the command line, trains what is missing and writes table, figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="part", required=True)
    for name, sizes, text_steps, vision_steps, examples in (
        ("vqa", "16x2,32x2,64x4,128x4", 800, 300, 1000),
        ("binding", "16x2,32x2,48x2", 1400, 400, 400),
    ):
        command = commands.add_parser(name, help=PARTS[name].__doc__, allow_abbrev=False)
        command.add_argument("--out", type=Path, required=True, help="folder of the workdirs, table and picture")
        command.add_argument("--sizes", type=read_sizes, default=sizes, help=f"units x layers, {HEADS} heads: {sizes}")
        command.add_argument("--text_steps", type=int, default=text_steps, help="of the text stage")
        command.add_argument("--vision_steps", type=int, default=vision_steps, help="of the vision stage")
        command.add_argument("--examples", type=int, default=examples, help=ITEMS[name])
    options = parser.parse_args()
    keep_freed_memory()
    lines: list[dict[str, Any]] = []
    for size in options.sizes:
        lines.append(PARTS[options.part](options, size))
        header = COLUMNS[options.part]
        table = format_table(header, [[str(line[name]) for name in header] for line in lines])
        about = f"{lines[0]['n']} {ITEMS[options.part]}; percent right, losses in nats per token."
        (options.out / f"{options.part}.md").write_text(f"{about}\n\n{table}\n")
        (options.out / f"{options.part}.json").write_text(json.dumps(lines, indent=2) + "\n")
        draw(PANELS[options.part], lines, options.out / f"{options.part}.png")
        print(table, flush=True)


if __name__ == "__main__":
    main()
