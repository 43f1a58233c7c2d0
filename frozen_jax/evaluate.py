"""The tasks that a trained model is measured by, by name. Called by `run.py`; each task is a file of `tasks/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from frozen_jax.config import Config
from frozen_jax.meter import MeteredModel
from frozen_jax.report import Report
from frozen_jax.tasks import caption, classify, easy_vqa, fewshot, fusion, generate, retrieval, tag, vqa
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.samples import Measured

Task: TypeAlias = Callable[[Config, Models, Path], Measured]
"""(config, models, workdir) → figures by section of the report, and samples."""

TASKS: Mapping[str, Task] = {
    "caption": caption.evaluate,
    "classify": classify.evaluate,
    "easy_vqa": easy_vqa.evaluate,
    "fewshot": fewshot.evaluate,
    "fewshot_text": fewshot.evaluate_text,
    "fusion": fusion.evaluate,
    "generate": generate.evaluate,
    "retrieval": retrieval.evaluate,
    "scene_text": easy_vqa.evaluate_scene_text,
    "tag": tag.evaluate,
    "vqa": vqa.evaluate,
}


def evaluate(config: Config, models: Models, report: Report, directory: Path) -> None:
    """Runs the config's task and adds its figures to the report.

    Raises:
        UserError: as the task.
    """
    name = config.evaluate.task
    if name == "none":
        return
    seeing = MeteredModel.wrap(models.seeing)
    measured = TASKS[name](config, models._replace(seeing=seeing), directory)
    for section, figures in measured.figures.items():
        report.add(section, **figures)
    report.add("evaluation", **seeing.meter.summarise(seeing))
    if seeing.answers is not None and seeing.answers.taken:  # the rates above are then not those of the model
        report.add("evaluation", answers_of_before=seeing.answers.taken)
    report.samples = measured.samples
