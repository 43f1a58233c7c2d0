"""From which size and length on does a language model bind in context? `python benchmarks/binding_curve.py RUN…`.

    python benchmarks/binding_curve.py runs/binding_text runs/binding_text_long runs/binding --out=curve.png

Reads finished workdirs of `configs/binding_text.py` (accuracy in words, over the steps since the language model was
drawn at random) and of `configs/binding.py` (through pictures, at the steps of the language model that it freezes).
Draws one grid point for each number of ways and prints the table. How they are made: `docs/binding.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAYS = (2, 5)
POINT = "ways_{}_shots_1_repeats_0_induction"
ROWS = {"text_oracle": "in words", "seeing": "through pictures"}


def read_run(directory: Path) -> dict[str, Any]:
    """Returns width and steps of the text stage, and the strict accuracies in percent by row and ways."""
    config = json.loads((directory / "config.json").read_text())
    report = json.loads((directory / "report.json").read_text())
    row = "seeing" if config["vision"]["name"] else "text_oracle"
    lm = directory / "lm" if row == "text_oracle" else Path(config["lm"]["path"])
    scores = {f"ways_{ways}": report["fewshot"][POINT.format(ways)][row]["strict"] for ways in WAYS}
    width = json.loads((lm / "config.json").read_text())["hidden_size"]
    return {"row": row, "width": width, "steps": count_text_steps(lm.parent), **scores}


def count_text_steps(directory: Path) -> int:
    """Adds up the steps of a text stage and of those it went on from."""
    path = json.loads((directory / "config.json").read_text())["lm"]["path"]
    before = count_text_steps(Path(path).parent) if path else 0
    return before + int(json.loads((directory / "report.json").read_text())["train"]["steps"])


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws accuracy over steps: a panel for each number of ways, a colour for each width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(WAYS), figsize=(9, 3.6), sharey=True)
    for axis, ways in zip(axes, WAYS, strict=True):
        for number, width in enumerate(sorted({run["width"] for run in runs})):
            for (row, said), style in zip(ROWS.items(), ("--o", "-s"), strict=True):
                line = sorted(
                    (run["steps"], run[f"ways_{ways}"]) for run in runs if (run["row"], run["width"]) == (row, width)
                )
                if line:
                    axis.plot(*zip(*line, strict=True), style, color=f"C{number}", label=f"{width} units, {said}")
        axis.axhline(100 / ways, color="gray", linestyle=":", label="chance")
        axis.set(title=f"{ways} ways, 1 inner-shot, with induction", xlabel="steps of the text stages", ylim=(0, 102))
    axes[0].set_ylabel("strict accuracy, percent")
    axes[0].legend(fontsize="small", loc="lower center")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished workdirs of both configs")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    runs = sorted((read_run(directory) for directory in options.runs), key=lambda run: (run["width"], run["steps"]))
    draw(runs, options.out)
    print("| width | steps | | 2 ways | 5 ways |\n|---:|---:|---|---:|---:|")
    for run in runs:
        print(f"| {run['width']} | {run['steps']} | {ROWS[run['row']]} | {run['ways_2']} | {run['ways_5']} |")


if __name__ == "__main__":
    main()
