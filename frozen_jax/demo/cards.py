"""What the page shows as an answer: HTML made here, in which whatever a person or a model wrote is escaped.

Before it: `answers.py`; around it: `layout.py`. Style is in `assets/demo.css`.
"""

from __future__ import annotations

from collections.abc import Iterable

from frozen_jax.data.images import ImageOptions
from frozen_jax.demo.answers import Answer, Classes, Demo, Drawing, Naming, Ranking
from frozen_jax.page import THUMBNAIL, draw_picture, escape

SHOWN = 12
"""Pictures of a ranking, and classes."""


def draw_header(demo: Demo) -> str:
    """Draws what stands above the tabs: the model's name and parts."""
    return f'<header class="head"><h1>{escape(demo.name)}</h1><p>{escape(demo.describe())}</p></header>'


def draw_hint(words: str) -> str:
    """Draws what stands where an answer will be."""
    return f'<div class="card hint" role="status">{escape(words)}</div>'


def draw_note(words: str) -> str:
    """Draws what a person can mend."""
    return f'<div class="card note" role="alert">{escape(words)}</div>'


def _took(made: Answer | Classes | Drawing | Naming | Ranking, demo: Demo) -> str:
    compiled = f", of these {made.compile_s:.2f} s compiling for this length" if made.compile_s > 0.05 else ""
    return f'<p class="took">{made.seconds:.2f} s on {escape(demo.device)}{compiled}</p>'


def _draw_read(prompt: str) -> str:
    return f"<details><summary>What the model read</summary><pre>{escape(prompt)}</pre></details>"


def draw_answer(made: Answer, demo: Demo, *, verbatim: bool = False) -> str:
    """Draws a text with its alternatives; `verbatim` adds what the model read."""
    text = f"<bdi>{escape(made.text)}</bdi>" if made.text else '<span class="faint">(nothing)</span>'
    bars = ""
    if made.alternatives:
        held = sum(probability for _, probability, _ in made.alternatives)
        bars = _draw_bars((name, share) for name, _, share in made.alternatives) + (
            '<p class="took">Shares among these; together the model gives them '
            f"{100 * min(held, 1):.2g} % of all that could follow.</p>"
        )
    shown = f'<p class="text">{text}</p>{bars}{_took(made, demo)}{_draw_read(made.prompt) if verbatim else ""}'
    return f'<div class="card" role="status">{shown}</div>'


def draw_classes(made: Classes, demo: Demo) -> str:
    """Draws a fusion's most probable classes."""
    best = made.probabilities[:SHOWN]
    left = len(made.probabilities) - len(best)
    more = f'<p class="took">The {len(best)} most probable of {left + len(best)} classes.</p>' if left else ""
    shown = f'<p class="text"><bdi>{escape(best[0][0])}</bdi></p>{_draw_bars(best)}{more}{_took(made, demo)}'
    return f'<div class="card" role="status">{shown}</div>'


def _draw_bars(shares: Iterable[tuple[str, float]]) -> str:
    return f'<ul class="bars">{"".join(f"<li>{_draw_bar(name, share)}</li>" for name, share in shares)}</ul>'


def _draw_bar(name: str, share: float) -> str:
    return (
        f'<span class="name"><bdi>{escape(name)}</bdi></span>'
        f'<span class="track"><i style="width: {100 * share:.1f}%"></i></span>'
        f'<span class="value">{100 * share:.1f} %</span>'
    )


def draw_naming(made: Naming, demo: Demo) -> str:
    """Draws how well names fit a picture, the likeliest first."""
    rows = "".join(
        f'<li>{_draw_bar(name, share)}<span class="value{" fits" if added > 0 else ""}">{added:+.2f}</span></li>'
        for name, share, added in made.names
    )
    words = (
        "Bars: the share of each, if one of these is right. Numbers: how much more probable the name is after this "
        "picture than after an average one, in nats per token; above 0 the picture speaks for it, whatever the others."
    )
    read = _draw_read("\n".join(made.prompts))
    shown = f'<ul class="bars two">{rows}</ul><p class="took">{words}</p>{_took(made, demo)}{read}'
    return f'<div class="card" role="status">{shown}</div>'


def draw_drawing(made: Drawing, demo: Demo) -> str:
    """Draws pictures that the model has drawn."""
    options = ImageOptions(2 * THUMBNAIL)  # twice as large as it is shown at least: small pixels stay sharp
    figures = "".join(f"<figure>{draw_picture(pixels, options)}</figure>" for pixels in made.pictures)
    shown = f'<div class="found drawn">{figures}</div>{_took(made, demo)}{_draw_read(made.prompt)}'
    return f'<div class="card" role="status">{shown}</div>'


def draw_ranking(made: Ranking, demo: Demo) -> str:
    """Draws the best pictures of a ranking."""
    options = ImageOptions(160, fit=demo.model.images.fit, max_pixels=demo.model.images.max_pixels)
    figures = "".join(
        f"<figure>{draw_picture(demo.gallery[row], options)}"
        f"<figcaption><b>{place}</b><bdi>{escape(demo.gallery[row].name)}</bdi><span>{score:+.2f}</span></figcaption></figure>"
        for place, (row, score) in enumerate(zip(made.rows[:SHOWN], made.scores, strict=False), 1)
    )
    words = (
        "Numbers: how much more probable the words are after this picture than after an average one, in nats per token."
    )
    return f'<div role="status"><div class="found">{figures}</div>{_took(made, demo)}<p class="took">{words}</p></div>'
