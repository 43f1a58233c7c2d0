"""The picture page of a report: one HTML file that needs no other, with headline figures, bars and single prompts.

Everything that comes from data or a model is hostile text here: `escape` makes it text, and the page's own policy
forbids scripts and whatever is not in the file. Layout and style are in `assets/report.html`.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from frozen_jax.api import Picture
from frozen_jax.charts import Chart, list_charts
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.records import RecordError
from frozen_jax.tasks.samples import Sample

TEMPLATE = Path(__file__).parent / "assets" / "report.html"
THUMBNAIL = 160
"""Largest height and width of a picture on the page, in pixels."""

SAMPLES = 60
"""Shown at most, over all groups."""
PARTS = 24
"""Of a prompt, text and pictures; of longer ones the first and the last are shown."""
LONG = 8
"""Parts above which a prompt's pictures are shown smaller."""
CHARACTERS = 600
TRUTHS = 5

_NAMES = {
    "seeing": "seeing",
    "shuffled": "shuffled pictures",
    "blind": "blind",
    "question_only": "commonest to each question",
    "majority": "commonest answer",
    "text_oracle": "described in words",
}
_TITLES = {"cider_d": "CIDEr-D x 100", "top_1": "top-1 accuracy", "strict": "strict accuracy"}
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, which HTML does not allow, as their pictures."""


def render_page(
    title: str,
    subtitle: str,
    *,
    figures: Mapping[str, Any],
    rows: Sequence[tuple[str, str]],
    samples: Sequence[Sample],
    images: ImageOptions,
) -> str:
    """Returns the page.

    Args:
        title: of the page.
        subtitle: one line under it.
        figures: of the report; what can be compared is drawn.
        rows: all of them, as text, for the table.
        samples: in the order of their groups.
        images: how pictures are prepared for the model; the page shows them so, only smaller.
    """
    charts = list_charts(figures)
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        tiles="".join([_tile(*tile) for tile in _list_tiles(charts, figures)]),
        charts=_section("Accuracy and its controls", "charts", [_draw_chart(chart) for chart in charts]),
        samples=_draw_samples(samples, images),
        rows="".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in rows),
    )


def escape(value: str) -> str:
    """Escapes text for HTML, with quotes; what no HTML file can hold is made visible."""
    storable = value.encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)
    return html.escape(storable, quote=True)


def _foreign(value: str) -> str:
    """Text that somebody else wrote, cut where it is very long; its marks of direction end with it."""
    cut = value if len(value) <= CHARACTERS else f"{value[:CHARACTERS]} … ({len(value)} characters)"
    return f"<bdi>{escape(cut)}</bdi>"


def _section(title: str, kind: str, cards: Sequence[str], note: str = "") -> str:
    if not cards:
        return ""
    lead = f"<p>{escape(note)}</p>" if note else ""
    return f'<h2>{escape(title)}</h2>\n{lead}<div class="grid {kind}">{"".join(cards)}</div>\n'


def _list_tiles(charts: Sequence[Chart], figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Headline figures: each measure with its controls, then speed and size."""
    tiles = []
    for chart in charts[:6]:
        (first, value), *others = chart.bars.items()
        compared = [f"{_NAMES[name]} {number:g}" for name, number in others]
        compared += [] if chart.chance is None else [f"chance {chart.chance:g}"]
        beside = f" ({', '.join(compared)})" if compared else ""
        tiles.append((f"{value:g}", f"{_NAMES[first]}, {_title(chart)}{beside}"))
    speed = figures.get("evaluation", {})
    for name, words in (("examples_per_s", "examples a second"), ("tokens_per_s", "tokens a second")):
        if name in speed:
            tiles.append((f"{speed[name]:,.0f}", words))
    if "flops_per_example" in speed:
        tiles.append((_with_prefix(speed["flops_per_example"]), "FLOP an example, counted"))
    return tiles


def _with_prefix(value: int | float) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    return f"{value:.3g} P"


def _tile(value: str, words: str) -> str:
    return f'<div class="card tile"><b>{escape(value)}</b>{escape(words)}</div>'


def _title(chart: Chart) -> str:
    name = chart.name.replace(".", ", ").replace("_", " ")
    return f"{name}: {_TITLES.get(chart.metric, chart.metric.replace('_', ' '))}"


def _draw_chart(chart: Chart) -> str:
    whole = max(100.0, *chart.bars.values())
    chance = (
        "" if chart.chance is None else f'<div class="chance" style="--share: {100 * chart.chance / whole:.2f}"></div>'
    )
    lines = "".join(
        f'<span>{escape(_NAMES[name])}</span><div class="track" aria-hidden="true">'
        f'<div class="bar {name}" style="--share: {100 * value / whole:.2f}"></div>{chance}</div>'
        f'<span class="value">{value:.2f}</span>\n'
        for name, value in chart.bars.items()
    )
    key = f'<p class="key"><i></i>chance: {chart.chance:.2f}</p>' if chart.chance is not None else ""
    return f'<div class="card"><h3>{escape(_title(chart))}</h3><div class="bars">{lines}</div>{key}</div>\n'


def _draw_samples(samples: Sequence[Sample], images: ImageOptions) -> str:
    options = dataclasses.replace(images, size=min(images.size, THUMBNAIL))
    encoded: dict[int, str] = {}

    def draw(part: str | Picture) -> str:
        if isinstance(part, str):
            return _foreign(part)
        if id(part) not in encoded:  # shots come again in other prompts
            encoded[id(part)] = draw_picture(part, options)
        return encoded[id(part)]

    groups = [(name, list(group)) for name, group in itertools.groupby(samples, lambda sample: sample.group)]
    most = max(2, SAMPLES // max(1, len(groups)))
    sections = []
    for name, group in groups:
        shown = sorted(group, key=lambda sample: -sample.score)
        if len(shown) > most:  # keep some of both kinds
            shown = shown[: most // 2] + shown[most // 2 - most :]
        cards = [_draw_sample(sample, draw) for sample in shown]
        note = "Chosen so that, as far as there are so many, half are right and half are wrong."
        sections.append(_section(f"Samples: {name.replace('_', ' ')}", "wide", cards, note))
    return "".join(sections)


def _draw_sample(sample: Sample, draw: Callable[[str | Picture], str]) -> str:
    prompt = sample.prompt
    drawn = list(map(draw, prompt if len(prompt) <= PARTS else prompt[: PARTS // 2]))
    if len(prompt) > PARTS:
        drawn.append(f'<span class="out">\n… {len(prompt) - PARTS} more …\n</span>')
        drawn += map(draw, prompt[-PARTS // 2 :])
    verdict = (
        "✓ right" if sample.score == 1 else "✗ wrong" if not sample.score else f"✗ partly right ({sample.score:.2f})"
    )
    answer = _foreign(sample.answer.strip()) if sample.answer.strip() else '<span class="out">(nothing)</span>'
    truths = list(dict.fromkeys(sample.truths))
    more = f" and {len(truths) - TRUTHS} more" if truths[TRUTHS:] else ""
    truth = " <b>|</b> ".join(_foreign(one) for one in truths[:TRUTHS]) + more
    return (
        f'<article class="card sample{"" if sample.score == 1 else " wrong"}"><span class="verdict">{verdict}</span>'
        f'<div class="prompt{" long" if len(prompt) > LONG else ""}">{"".join(drawn)}</div>'
        f"<dl><dt>model</dt><dd>{answer}</dd>"
        f"<dt>truth</dt><dd>{truth}</dd></dl></article>\n"
    )


def draw_picture(picture: Picture, options: ImageOptions) -> str:
    """Returns an image element with the picture in it; one that nobody can open (a blind model has not) is named so."""
    try:
        pixels = load_image(picture, options=options)
    except RecordError:
        return '<span class="out">[a picture that cannot be opened]</span>'
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "WEBP", quality=90)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="picture" width="{options.size}" height="{options.size}" src="data:image/webp;base64,{data}">'
