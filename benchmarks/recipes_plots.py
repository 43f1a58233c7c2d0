"""Recipes in pictures: learning rate by prefix scale, number of pictures and early stopping, seeds' spread.

    PYTHONPATH=. python benchmarks/recipes_plots.py sweep --out=runs/sweep [--rates=1e-3,4e-3] [--scales=0.25,1,4]
    PYTHONPATH=. python benchmarks/recipes_plots.py pictures --out=runs/pictures [--counts=100,300,1000]
    PYTHONPATH=. python benchmarks/recipes_plots.py seeds --out=runs/seeds [--seeds=3]

Each trains `configs/quickstart.py`, shortened, or what `--config=FILE --config.…` says, once for each cell, in workdirs
below `--out`, where what is finished is taken as it is, and writes there a table (Markdown), its figures (JSON) and a
picture, all anew after each run. A run that stops at a loss that is not finite is an empty cell of the sweep.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import change, replace_flags, run_once
from frozen_jax.config_file import read_config
from frozen_jax.errors import UserError
from frozen_jax.startup import keep_freed_memory
from frozen_jax.telemetry import format_table

SHORT = (
    "--config=configs/quickstart.py",
    "--config.optim.warmup_steps=20",
    "--config.train.patience=0",
    "--config.evaluate.blind_control=False",
)

CURVES = (
    *SHORT,
    "--config.train.steps=300",
    "--config.train.evaluate_every=20",
    "--config.evaluate.task=easy_vqa",
    "--config.evaluate.examples=440",
)

VARIANTS: dict[str, dict[str, Any]] = {
    "no augmentation": {"data": {"augment": {"flip": False}}},
    "dropout 0.2": {"prefix": {"dropout": 0.2}},
    "shift, zoom, light": {"data": {"augment": {"shift": 0.1, "zoom": 0.8, "brightness": 0.2}}},
}
"""What is changed, one at a time, against the quickstart, which mirrors pictures and drops nothing."""


def read_losses(directory: Path, kind: str) -> dict[int, float]:
    """Returns the losses of a run by step; `kind` is "train" or "validation"."""
    lines = (json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == kind}


def join_curves(curves: Sequence[Mapping[int, float]]) -> tuple[list[int], np.ndarray]:
    """Returns the steps that all curves have, and the losses there, float [curves, steps]."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, np.array([[curve[step] for step in steps] for curve in curves])


def write(out: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]], figures: Any) -> None:
    """Writes and prints the table, and writes the figures."""
    table = format_table(header, [["" if cell is None else cell for cell in row] for row in rows])
    (out / f"{name}.md").write_text(table + "\n")
    (out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(table, flush=True)


def new_figure(columns: int, *, width: float) -> tuple[Any, Any]:
    """Returns a figure and its panels, side by side, without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, 3.6), layout="constrained")


def sweep(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Trains for each learning rate and prefix scale; the validation loss at the last step counts."""
    base = read_config(replace_flags([*SHORT, "--config.train.steps=120", "--config.evaluate.task=none"], words))
    base = change(base, {"train": {"evaluate_every": base.train.steps}})
    rates, scales = ([float(x) for x in text.split(",")] for text in (options.rates, options.scales))
    losses = np.full((len(scales), len(rates)), np.nan)
    for column, rate in enumerate(rates):
        for row, scale in enumerate(scales):
            directory = options.out / f"rate_{rate:g}_scale_{scale:g}"
            try:
                run_once(change(base, {"optim": {"learning_rate": rate}, "prefix": {"scale": scale}}), directory)
                losses[row, column] = read_losses(directory, "validation")[base.train.steps]
            except UserError as error:
                print(error)
            figures = {"rates": rates, "scales": scales, "losses": losses.tolist(), "steps": base.train.steps}
            rows = [[f"{size:g}", *map(_show, line)] for size, line in zip(scales, losses, strict=True)]
            write(options.out, "sweep", ["scale", *(f"{rate:g}" for rate in rates)], rows, figures)
    draw_sweep(rates, scales, losses, options.out / "sweep.png", steps=base.train.steps)


def _show(value: float) -> str | None:
    return f"{value:.3f}" if math.isfinite(value) else None


def draw_sweep(rates: Sequence[float], scales: Sequence[float], losses: np.ndarray, path: Path, *, steps: int) -> None:
    """Draws losses [scales, rates] as a heat map with their values."""
    figure, axes = new_figure(1, width=5.2)
    image = axes.imshow(losses, cmap="viridis_r", origin="lower", aspect="auto")
    middle = (np.nanmin(losses) + np.nanmax(losses)) / 2
    for (row, column), loss in np.ndenumerate(losses):
        colour = "white" if loss > middle else "black"
        axes.text(column, row, _show(loss) or "not finite", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axes.set(xlabel="learning rate", ylabel="prefix.scale", title=f"validation loss at step {steps}, nats")
    figure.colorbar(image)
    figure.savefig(path, dpi=90)


def pictures(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Trains on the first so many pictures, and at one number of them with each of `VARIANTS`."""
    base = read_config(replace_flags(CURVES, words))
    cells: list[tuple[int | None, str]] = [(int(count), "") for count in options.counts.split(",")]
    cells += [(None, ""), *((options.varied, name) for name in VARIANTS)]
    rows: list[dict[str, Any]] = []
    for count, name in cells:
        limit = "" if count is None else f"?count={count}"
        changed = change(base, VARIANTS.get(name, {}))
        changed = change(changed, {"data": {"train": f"{base.data.train}{limit}"}})
        directory = options.out / f"{count or 'all'}_{name.replace(', ', '_').replace(' ', '_') or 'plain'}"
        report = run_once(changed, directory)
        losses = read_losses(directory, "validation")
        rows.append(
            {
                "pictures": count,
                "changed": name,
                "exact": report["caption"]["seeing"]["exact_match"],
                "best_step": report["train"]["best_step"],
                "best_loss": min(losses.values()),
                "last_loss": losses[max(losses)],
                "losses": losses,
            }
        )
        shown = [
            [row["pictures"] or "all", row["changed"], *(row[key] for key in ("exact", "best_step"))]
            + [f"{row[key]:.3f}" for key in ("best_loss", "last_loss")]
            for row in rows
        ]
        header = ["pictures", "changed", "captions exact", "best step", "loss there", "loss at the end"]
        write(options.out, "pictures", header, shown, rows)
        draw_pictures(rows, options.out / "pictures.png")


def draw_pictures(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws validation loss over steps, the best step marked: by number of pictures, and by what is changed."""
    figure, panels = new_figure(2, width=9)
    counts = {row["pictures"] for row in rows if row["changed"]}
    chosen = (
        [(row, f"{row['pictures'] or 'all'} pictures") for row in rows if not row["changed"]],
        [(row, row["changed"] or "as it is") for row in rows if row["pictures"] in counts],
    )
    titles = ("number of training pictures", f"augmentation and dropout, {next(iter(counts), '')} pictures")
    for axes, lines, title in zip(panels, chosen, titles, strict=True):
        for number, (row, name) in enumerate(lines):
            steps, losses = zip(*sorted(row["losses"].items()), strict=True)
            axes.plot(steps, losses, color=f"C{number}", label=f"{name}: {row['exact']:.1f} % exact")
            axes.plot(row["best_step"], row["best_loss"], "o", color=f"C{number}")
        axes.set(xlabel="step (dot: the best, which is kept)", ylabel="validation loss, nats", title=title)
        if lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=80)


def seeds(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Trains with several seeds, or takes finished runs, and draws their losses with mean and range."""
    if options.runs:
        draw_seeds([Path(name) for name in options.runs.split(",")], options.out / "seeds.png")
        return
    base = read_config(replace_flags(CURVES, words))
    directories = [options.out / f"seed_{seed}" for seed in range(options.seeds)]
    reports = [run_once(change(base, {"seed": seed}), path) for seed, path in enumerate(directories)]
    rows = [
        [seed, report["caption"]["seeing"]["exact_match"], report["train"]["best_validation_loss"]]
        for seed, report in enumerate(reports)
    ]
    write(options.out, "seeds", ["seed", "captions exact", "best validation loss"], rows, rows)
    draw_seeds(directories, options.out / "seeds.png")


def draw_seeds(directories: Sequence[Path], path: Path) -> None:
    """Draws the mean and the range of the losses of runs that differ in their seed."""
    figure, axes = new_figure(1, width=5.6)
    for number, (kind, marker) in enumerate((("train", ""), ("validation", "."))):
        steps, losses = join_curves([read_losses(directory, kind) for directory in directories])
        axes.plot(steps, losses.mean(axis=0), marker=marker, color=f"C{number}", label=kind)
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=f"C{number}", alpha=0.25)
    axes.set(xlabel="step", ylabel="loss, nats", title=f"mean and range of {len(directories)} seeds")
    axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="picture", required=True)
    for action in (sweep, pictures, seeds):
        command = commands.add_parser(action.__name__, help=action.__doc__, allow_abbrev=False)
        command.add_argument("--out", type=Path, required=True, help="folder of the workdirs, table and picture")
        command.set_defaults(action=action)
        if action is sweep:
            command.add_argument("--rates", default="1e-3,4e-3,1.6e-2", help="learning rates")
            command.add_argument("--scales", default="0.25,1,4", help="of the prefix")
        elif action is pictures:
            command.add_argument("--counts", default="100,300,1000", help="numbers of pictures, beside all of them")
            command.add_argument("--varied", type=int, default=300, help="number of pictures of the variants")
        else:
            command.add_argument("--seeds", type=int, default=3, help="runs, with the seeds 0, 1, …")
            command.add_argument("--runs", default="", help="finished workdirs to draw, in place of training")
    options, words = parser.parse_known_args()
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    options.action(options, words)


if __name__ == "__main__":
    main()
