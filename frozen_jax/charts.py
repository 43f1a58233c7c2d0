"""The accuracies of a report with what they have to be compared with, whichever task they are of.

Used by the picture page (`page.py`) and the table of controls (`tools/controls.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

METRICS = (
    "accuracy",
    "strict",
    "top_1",
    "cider_d",
    "exact_match",
    "text_to_image_r_1",
    "image_to_image_r_1",
    "map",
    "micro_f1",
)
"""The first of these that a row has is the one it is compared by."""

VIEWS = ("seeing", "shuffled", "blind")
"""A model and what it is shown, as `tasks/controls.View` has them."""

BASELINES = ("question_only", "majority", "text_oracle")
"""Answers without a picture: the commonest to each question, the commonest, and by a description in words."""


@dataclass(frozen=True)
class Chart:
    """One measure of a report.

    Attributes:
        name: path of the section, such as "vqa.shots_4".
        metric: one of `METRICS`.
        bars: by view and baseline, in percent (CIDEr-D x 100).
        chance: likewise, where the report has it.
    """

    name: str
    metric: str
    bars: Mapping[str, float]
    chance: float | None = None


def list_charts(figures: Mapping[str, Any]) -> list[Chart]:
    """Returns every measure of a report that was taken by a model and its controls, in the report's order.

    A baseline that stands beside several measures, as does the commonest answer beside those of k shots, belongs to
    each of them.
    """
    return list(_walk(figures, name="", baselines={}, chance=None))


def _walk(
    figures: Mapping[str, Any], *, name: str, baselines: Mapping[str, Any], chance: float | None
) -> Iterator[Chart]:
    baselines = {**baselines, **{key: figures[key] for key in BASELINES if key in figures}}
    chance = figures.get("chance", chance)
    views = {key: figures[key] for key in VIEWS if isinstance(figures.get(key), Mapping)}
    metric = next((one for one in METRICS if any(one in view for view in views.values())), "")
    if metric:
        taken = {key: _read(value, metric) for key, value in (views | dict(baselines)).items()}
        yield Chart(name, metric, {key: value for key, value in taken.items() if value is not None}, chance)
        return
    for key, value in figures.items():
        if isinstance(value, Mapping) and key not in BASELINES:
            yield from _walk(value, name=f"{name}.{key}".lstrip("."), baselines=baselines, chance=chance)


def _read(value: Any, metric: str) -> float | None:
    found = value.get(metric) if isinstance(value, Mapping) else value
    return None if found is None else float(found)
