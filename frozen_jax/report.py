"""The report of a run: one JSON file, the same figures in Markdown, a picture page, and a picture of samples.

What is measured comes from `tasks/`; nothing is computed here but how it is written.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import resource
import textwrap
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from frozen_jax.config import Config, identify
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.page import render_page
from frozen_jax.processes import is_first
from frozen_jax.tasks.samples import Sample
from frozen_jax.telemetry import format_table
from frozen_jax.train import Trained
from frozen_jax.workdir import digest_config, write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from frozen_jax.tasks.easy_vqa import QuestionSet

SAMPLES = 12
QUESTIONS_PER_SAMPLE = 3
DRAWN_CLASSES = 40
SHOWN = 5
"""Entries of a list in the table; the JSON file has all."""


class Report:
    """Figures by section; percentages are 0..100."""

    def __init__(self, config: Config, trained: Trained, device_kind: str):
        """Starts with what training says about itself."""
        self._config = config
        self.samples: list[Sample] = []
        self.figures: dict[str, Any] = {
            "train": describe_training(config, trained),
            "device": device_kind,
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
            },
            "config_digest": digest_measured(config),
        }

    def add(self, section: str, **figures: Any) -> None:
        """Adds figures to a section."""
        self.figures.setdefault(section, {}).update(figures)

    def write(self, directory: Path, *, wall_s: float) -> dict[str, Any]:
        """Writes the JSON and the Markdown file and, of a task, the page; prints the table and returns the figures."""
        self.figures["wall_s"] = round(wall_s, 1)
        self.figures["peak_host_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows = [(name, show_figure(value)) for name, value in flatten_figures(self.figures)]
        table = format_table(("figure", "value"), rows)
        if not is_first():
            return self.figures
        name = self._config.evaluate.report
        write_json_atomic(directory / f"{name}.json", self.figures)
        text = f"# Report\n\nAccuracies and matches are percentages.\n\n{table}\n"
        write_text_atomic(directory / f"{name}.md", text)
        if self._config.evaluate.task != "none":
            self._write_page(directory / f"{name}.html", rows)
        print(table)
        return self.figures

    def _write_page(self, path: Path, rows: Sequence[tuple[str, str]]) -> None:
        train = self.figures["train"]
        page = render_page(
            f"{self._config.evaluate.task} of {path.parent.name}",
            f"step {train['best_step'] or train['steps']}, {self.figures['device']}, JAX {jax.__version__}",
            figures=self.figures,
            rows=rows,
            samples=self.samples,
            images=self._config.data.image,
        )
        write_text_atomic(path, page)


def describe_training(config: Config, trained: Trained) -> dict[str, Any]:
    """Returns what training says about itself."""
    progress = trained.progress
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        # None before the first validation, which an interrupted run may be asked for: JSON knows no infinity.
        "best_validation_loss": round(progress.best_loss, 4) if math.isfinite(progress.best_loss) else None,
        "finished": progress.finished,
        "stopped_early": progress.finished and progress.step < config.train.steps,
        "examples_per_s": round(progress.examples_per_s, 1),
        "tokens_per_s": round(progress.examples_per_s * config.data.max_tokens, 1),
    }


def digest_measured(config: Config) -> str:
    """Digests what the figures of a report depend on: the run and how it is evaluated, not where."""
    return digest_config(identify(config) | {"evaluate": dataclasses.asdict(config.evaluate)})


def draw_samples(path: Path, tests: QuestionSet, captions: Sequence[str], answers: Sequence[str]) -> None:
    """Draws a grid of test pictures with their truth, the caption and a few answers; wrong ones are red.

    Args:
        path: a PNG file.
        tests: pictures and questions.
        captions: one for each picture.
        answers: one for each question.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[str, Any] = {"fontsize": 9, "parse_math": False}  # a model may write anything, dollar signs included
    by_picture: dict[int, list[tuple[str, str, str]]] = {}
    for question, answer in zip(tests.questions, answers, strict=True):
        by_picture.setdefault(question.image_index, []).append((question.question, answer.strip(), question.answer))
    chosen = [row for row in by_picture if tests.scenes[row]][:SAMPLES]
    figure, axes = pyplot.subplots(3, 4, figsize=(15, 14))
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, chosen, strict=False):
        axis.imshow(tests.images[row])
        title = f"truth: {' '.join(tests.scenes[row] or ())}"
        axis.set_title(make_printable(title), fontsize=10, loc="left", parse_math=False)
        lines = [(f"caption: {captions[row]}", "black")]
        for asked, answer, truth in by_picture[row][:QUESTIONS_PER_SAMPLE]:
            lines.append((f"{asked} → {answer}", "darkgreen" if answer == truth else "crimson"))
        place = -0.04
        for line, colour in lines:
            wrapped = textwrap.fill(make_printable(line), 44)
            axis.text(0, place, wrapped, transform=axis.transAxes, va="top", color=colour, **style)
            place -= 0.075 * (1 + wrapped.count("\n"))
    figure.subplots_adjust(left=0.02, right=0.99, top=0.97, bottom=0.12, hspace=0.5, wspace=0.06)
    save_figure(figure, path)
    pyplot.close(figure)


def draw_confusion(
    path: Path,
    scores: Float[np.ndarray, "examples classes"],
    targets: Int[np.ndarray, " examples"],
    classes: Sequence[str],
) -> None:
    """Draws which class was taken for which: a row for each right class, in shares of its pictures.

    Of more than `DRAWN_CLASSES` the commonest are drawn; what was taken for others is then missing in its row.

    Args:
        path: a PNG file.
        scores: of each class; the largest is the guess.
        targets: the right classes.
        classes: their names.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matrix = np.zeros((len(classes), len(classes)))
    np.add.at(matrix, (targets, scores.argmax(axis=1)), 1)
    counts = matrix.sum(axis=1)
    drawn = np.sort(np.argsort(-counts, kind="stable")[:DRAWN_CLASSES])
    shares = (matrix / np.maximum(counts, 1)[:, None])[np.ix_(drawn, drawn)]
    side = max(4.0, 0.32 * len(drawn) + 2)
    figure, axis = pyplot.subplots(figsize=(side, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [make_printable(classes[place]) for place in drawn]
    style: dict[str, Any] = {"fontsize": 8, "parse_math": False}  # a class may be any text, dollar signs included
    axis.set_xticks(range(len(drawn)), labels, rotation=90, **style)
    counted = [f"{name} ({int(counts[place])})" for place, name in zip(drawn, labels, strict=True)]
    axis.set_yticks(range(len(drawn)), counted, **style)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is (pictures)")
    for row, column in np.argwhere(shares >= 0.05):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{100 * shares[row, column]:.0f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    accuracy = 100 * float((scores.argmax(axis=1) == targets).mean())
    axis.set_title(f"{accuracy:.1f} % of {len(targets):,} right; shares of a row in percent", fontsize=9)
    save_figure(figure, path, bbox_inches="tight")
    pyplot.close(figure)


def draw_answers(
    path: Path,
    pictures: Sequence[Any],
    truths: Sequence[str],
    given: Sequence[str],
    right: Sequence[bool],
    *,
    size: int,
) -> None:
    """Draws the first pictures with what they are and what was said of them: right in green, the rest in red.

    Args:
        path: a PNG file.
        pictures: as `load_image` opens them.
        truths: of each.
        given: what the model says of each.
        right: whether that counts as right.
        size: height and width in which they are drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def wrap(text: str) -> str:
        return textwrap.fill(make_printable(text), 25)

    figure, axes = pyplot.subplots(2, SAMPLES // 2, figsize=(13, 5.4), gridspec_kw={"hspace": 0.45})
    style = {"fontsize": 8, "parse_math": False}  # a model may write anything, dollar signs included
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, truth, said, holds in zip(axes.flat, pictures, truths, given, right, strict=False):
        axis.imshow(load_image(picture, options=ImageOptions(size=size)))
        axis.set_title(wrap(f"is: {truth}"), loc="left", **style)
        colour = "darkgreen" if holds else "crimson"
        axis.text(0, -0.06, wrap(said), transform=axis.transAxes, va="top", color=colour, **style)
    save_figure(figure, path, bbox_inches="tight")
    pyplot.close(figure)


def make_printable(text: str) -> str:
    """Replaces what no font can draw, control characters and half signs, and makes every kind of space a plain one."""
    plain = (" " if sign.isspace() else sign for sign in text)
    return "".join("\ufffd" if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in plain)


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a PNG; `options` are those of `savefig`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font lacks: drawn as a box
        figure.savefig(path, dpi=80, **options)


def flatten_figures(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Lists a report's figures as (section.name, value), in its order."""
    rows: list[tuple[str, Any]] = []
    for key, value in figures.items():
        name = f"{prefix}{key}"
        rows += flatten_figures(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows


def show_figure(value: Any) -> str:
    """A value in a table's cell, which holds no line ends."""
    if isinstance(value, list):
        more = f" and {len(value) - SHOWN} more" if value[SHOWN:] else ""
        return ", ".join(map(show_figure, value[:SHOWN])) + more
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("\n", "\\n").replace("|", "\\|")
