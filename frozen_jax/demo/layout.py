"""How the page looks and what its buttons do, in Gradio. What is answered is in `answers.py`.

Whatever a person or a model wrote is hostile text: it goes through `page.escape`, or into components that do so.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frozen_jax.data.images import FORMATS, ImageError
from frozen_jax.demo.answers import ALTERNATIVES, DRAWN, LONGEST, NAMES, NAMES_LONGEST, Demo
from frozen_jax.demo.cards import (
    draw_answer,
    draw_classes,
    draw_drawing,
    draw_header,
    draw_hint,
    draw_naming,
    draw_note,
    draw_ranking,
)
from frozen_jax.demo.examples import Example
from frozen_jax.errors import UserError

STYLE = Path(__file__).parent.parent / "assets" / "demo.css"
DROP = "Drop a picture, or click"
SHOTS = 4
_READS = {
    "image": "This model names the class of a picture.",
    "text": "This model names a class by the text alone: another picture changes nothing.",
}
"""What a kind of fusion reads that does not read both sides."""
_REASONS = {
    "missing": "The picture is no longer here. Please upload it again.",
    "empty": "This file is empty. Please choose another one.",
    "not a picture": f"This file is not a picture that can be opened. Please use {', '.join(FORMATS)}.",
    "damaged": "This picture is damaged or was cut off. Please choose another one.",
    "too many pixels": "This picture has too many pixels. Please make it smaller.",
    "unsupported pixels": "The pixels of this picture have no usual range. Please save it with 8 or 16 bits.",
}


def build_page(gr: Any, demo: Demo, examples: Sequence[Example], *, stored_s: int) -> Any:
    """Builds the page.

    Args:
        gr: the module `gradio`.
        demo: what answers.
        examples: pictures to try.
        stored_s: seconds after which uploads are deleted.

    Returns:
        `gradio.Blocks`, not launched.
    """

    def picture(**options: Any) -> Any:
        fixed = {"sources": ["upload"], "type": "filepath", "image_mode": None, "buttons": []}
        shown = gr.Image(**{"label": "Picture", "height": 260, "placeholder": DROP, **fixed, **options})
        # Gradio would open the file with all of Pillow's formats; the project's reader gets it as it came. Not by a
        # class of its own: Gradio writes a stub file beside the source of each.
        shown.preprocess = lambda payload: None if payload is None else Path(payload.path)
        return shown

    def on(trigger: Callable[..., Any] | list[Callable[..., Any]], call: Any, inputs: list[Any], output: Any) -> None:
        """One thing computes at a time, whoever asked; nothing is offered to programs."""
        gr.on(
            trigger,
            call,
            inputs,
            output,
            concurrency_id="model",
            concurrency_limit=1,
            api_visibility="private",
            show_progress="minimal",
            trigger_mode="always_last",
        )

    paths = [str(example.path) for example in examples]

    def offer(target: Any) -> None:
        """Pictures to try. Not `gr.Examples`, which puts another component in the place of `target`."""
        samples = gr.Dataset(
            components=[target], samples=[[path] for path in paths], type="index", label="Or try one of these"
        )
        samples.click(lambda index: paths[index], samples, target, api_visibility="private", show_progress="hidden")

    with gr.Blocks(title=f"{demo.name} · frozen_jax", analytics_enabled=False, delete_cache=(60, stored_s)) as page:
        gr.HTML(draw_header(demo), padding=False)
        if demo.fusion:
            _add_classes(gr, demo, picture, offer, on)
        elif demo.draws:
            _add_draw(gr, demo, examples, on)
        else:
            _add_words(gr, demo, examples, picture, offer, on)
    return page


def make_theme(gr: Any) -> Any:
    """Returns Gradio's plain theme with the system's fonts; its own ones come from elsewhere."""
    font = gr.themes.Font
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=[font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")],
        font_mono=[font(name) for name in ("ui-monospace", "Menlo", "monospace")],
    )
    return theme.set(body_text_color_subdued="#57534e", body_text_color_subdued_dark="#a8a29e")


def _add_words(
    gr: Any,
    demo: Demo,
    examples: Sequence[Example],
    picture: Callable[..., Any],
    offer: Callable[[Any], None],
    on: Callable[..., None],
) -> None:
    with gr.Tab("Caption", id="caption"), gr.Row(elem_classes="pair"):
        with gr.Column(min_width=280):
            shown = picture(elem_id="caption-picture")
            offer(shown)
        with gr.Column(min_width=280):
            caption = gr.HTML(draw_hint("The caption appears here."), elem_id="caption-answer", padding=False)
        on(
            shown.change,
            _safely(lambda given: draw_answer(demo.caption(given), demo), idle=True),
            [shown],
            caption,
        )
    with gr.Tab("Ask", id="ask"), gr.Row(elem_classes="pair"):
        with gr.Column(min_width=280):
            asked = picture(elem_id="ask-picture")
            offer(asked)
        with gr.Column(min_width=280):
            question = gr.Textbox(
                label="Question", placeholder="what color is the shape?", max_length=LONGEST, elem_id="ask-question"
            )
            ask = gr.Button("Ask", variant="primary", elem_id="ask-button")
            answer = gr.HTML(draw_hint("The answer appears here."), elem_id="ask-answer", padding=False)
        on(
            [ask.click, question.submit],
            _safely(lambda given, text: draw_answer(demo.ask(given, text), demo)),
            [asked, question],
            answer,
        )
    with gr.Tab("Few-shot", id="few-shot"):
        _add_few_shot(gr, demo, examples, picture, on)
    with gr.Tab("Names", id="names"), gr.Row(elem_classes="pair"):
        with gr.Column(min_width=280):
            named = picture(elem_id="names-picture")
            offer(named)
        with gr.Column(min_width=280):
            names = gr.Textbox(
                label="Names, separated by commas",
                info=f"Classes, of which one is right, or tags, of which many may be; at most {NAMES}.",
                placeholder="circle, triangle, rectangle",
                lines=2,
                max_length=NAMES_LONGEST,
                elem_id="names-list",
            )
            name = gr.Button("Compare", variant="primary", elem_id="names-button")
            worth = gr.HTML(draw_hint("How well each name fits appears here."), elem_id="names-answer", padding=False)
        on(
            [name.click, names.submit],
            _safely(lambda given, wanted: draw_naming(demo.name_picture(given, wanted), demo)),
            [named, names],
            worth,
        )
    if demo.gallery:
        with gr.Tab("Gallery", id="gallery"):
            gr.Markdown(f"{len(demo.gallery)} pictures, ranked by how probable each makes your words.")
            with gr.Row(elem_classes="line"):
                text = gr.Textbox(
                    show_label=False,
                    container=False,
                    placeholder="a red circle",
                    max_length=LONGEST,
                    elem_id="gallery-text",
                    scale=5,
                )
                find = gr.Button("Search", variant="primary", elem_id="gallery-button", scale=1, min_width=120)
            found = gr.HTML(draw_hint("The pictures appear here."), elem_id="gallery-answer", padding=False)
            on(
                [find.click, text.submit],
                _safely(lambda wanted: draw_ranking(demo.retrieve(wanted), demo)),
                [text],
                found,
            )


def _add_classes(
    gr: Any, demo: Demo, picture: Callable[..., Any], offer: Callable[[Any], None], on: Callable[..., None]
) -> None:
    both = f"This model names a class by a picture and a {demo.wording.item} together (fusion.kind={demo.fusion})."
    with gr.Tab("Classify", id="classify"):
        gr.Markdown(_READS.get(demo.fusion, both))
        with gr.Row(elem_classes="pair"):
            with gr.Column(min_width=280):
                shown = picture(elem_id="classify-picture")
                offer(shown)
            with gr.Column(min_width=280):
                words = gr.Textbox(
                    label=demo.wording.item.capitalize(),
                    placeholder="what color is the shape?" if demo.wording.item == "question" else "a red circle",
                    max_length=LONGEST,
                    elem_id="classify-text",
                    visible=demo.fusion != "image",
                )
                go = gr.Button("Classify", variant="primary", elem_id="classify-button")
                answer = gr.HTML(draw_hint("The classes appear here."), elem_id="classify-answer", padding=False)
            on(
                [go.click, words.submit],
                _safely(lambda given, text: draw_classes(demo.classify(given, text), demo)),
                [shown, words],
                answer,
            )


def _add_draw(gr: Any, demo: Demo, examples: Sequence[Example], on: Callable[..., None]) -> None:
    captions = [example.caption for example in examples]
    with gr.Tab("Draw", id="draw"), gr.Row(elem_classes="pair"):
        with gr.Column(min_width=280):
            text = gr.Textbox(
                label="What to draw", placeholder=captions[0], max_length=LONGEST, elem_id="draw-text", autofocus=True
            )
            samples = gr.Dataset(
                components=[text],
                samples=[[one] for one in captions],
                type="index",
                label="Or try one of these",
                elem_classes="texts",
            )
            samples.click(
                lambda index: captions[index], samples, text, api_visibility="private", show_progress="hidden"
            )
            with gr.Row():
                numbers = list(range(1, DRAWN + 1))
                seed = gr.Number(label="Seed", value=0, min_width=100, scale=1, elem_id="draw-seed")
                count = gr.Radio(numbers, label="Pictures", value=DRAWN, min_width=150, scale=2, elem_id="draw-count")
            go = gr.Button("Draw", variant="primary", elem_id="draw-button")
        with gr.Column(min_width=280):
            drawn = gr.HTML(draw_hint("The pictures appear here."), elem_id="draw-answer", padding=False)
        on(
            [go.click, text.submit],
            _safely(lambda *given: draw_drawing(demo.draw(*given), demo)),
            [text, seed, count],
            drawn,
        )


def _add_few_shot(
    gr: Any, demo: Demo, examples: Sequence[Example], picture: Callable[..., Any], on: Callable[..., None]
) -> None:
    gr.Markdown("Show pictures with words, then a last picture with words that the model continues.")
    shots = []
    with gr.Row(elem_classes="shots"):
        for number in range(1, SHOTS + 1):
            with gr.Column(min_width=150):
                shot = picture(
                    label=f"Example {number}", height=150, placeholder="Picture", elem_id=f"shot-{number}-picture"
                )
                words = gr.Textbox(
                    show_label=False,
                    container=False,
                    placeholder="This is a dax." if number % 2 else "This is a blicket.",
                    max_length=LONGEST,
                    elem_id=f"shot-{number}-words",
                )
                shots += [shot, words]
    with gr.Row(elem_classes="pair"):
        with gr.Column(min_width=280):
            last = picture(label="Asked about", height=200, elem_id="last-picture")
            words = gr.Textbox(
                label="Words that the model continues",
                placeholder="This is a",
                max_length=LONGEST,
                elem_id="last-words",
            )
        with gr.Column(min_width=280):
            alternatives = gr.Textbox(
                label="Alternatives, separated by commas",
                info=f"Optional, at most {ALTERNATIVES}. The model's own answer is compared with them.",
                placeholder="dax, blicket",
                max_length=LONGEST,
                elem_id="alternatives",
            )
            with gr.Row():
                fill = gr.Button("Example", min_width=140, elem_id="few-shot-fill")
                go = gr.Button("Continue", variant="primary", min_width=140, elem_id="few-shot-button")
            answer = gr.HTML(draw_hint("The answer appears here."), elem_id="few-shot-answer", padding=False)
    fields = [*shots, last, words, alternatives]
    filled = make_few_shot(examples)
    fill.click(lambda: filled, None, fields, api_visibility="private", show_progress="hidden")

    def call(*given: Any) -> str:
        *pairs, shown, asked, wanted = given
        made = demo.continue_prompt(list(zip(pairs[::2], pairs[1::2], strict=True)), shown, asked, wanted)
        return draw_answer(made, demo, verbatim=True)

    on([go.click], _safely(call), fields, answer)


def make_few_shot(examples: Sequence[Example]) -> list[str | None]:
    """Returns what fills the tab's fields: pictures with their captions, another picture, no words, alternatives."""
    *shown, asked = examples[: min(len(examples), SHOTS)]
    fields: list[str | None] = []
    for path, caption in shown:
        fields += [str(path), f"{caption.rstrip('.')}."]
    fields += [None, ""] * (SHOTS - len(shown))
    return [*fields, str(asked.path), "", ", ".join(one.caption for one in examples)]


def _safely(call: Callable[..., str], *, idle: bool = False) -> Callable[..., str]:
    """What a person can mend is said in the page; what else goes wrong is the operator's, with its traceback.

    Args:
        call: makes the answer.
        idle: no picture is no mistake: it was taken away.
    """

    def answer(*given: Any) -> str:
        if idle and given == (None,):
            return draw_hint("The caption appears here.")
        try:
            return call(*given)
        except ImageError as error:
            return draw_note(_REASONS[error.reason])
        except UserError as error:
            return draw_note(str(error))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return draw_note("Something went wrong on this side. Whoever runs the page finds the reason in its log.")

    return answer
