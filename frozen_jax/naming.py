"""What texts, such as names of classes, tags or captions, are worth after pictures. Used by `tasks/` and the demo page.

    table = model.embed_image([pathlib.Path("a.png"), pathlib.Path("b.png")])
    worth = score_texts(model, table, [" circle", " triangle"], prompts=("[img] This is a",))
    worth.scores.argmax(axis=1)  # one class for each picture
    worth.less_prior > 0  # tags: any number of them

A class is the name of the largest score. A tag is judged by itself, over pictures: there a word that is common whatever
is shown must not win, so its worth after the mean picture is taken off (contextual calibration, Zhao et al., arXiv
2102.09690, with a picture in the place of their empty text).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from frozen_jax.api import Model
from frozen_jax.errors import UserError
from frozen_jax.prompt import IMAGE_MARK, Image, Prompt, fill


class Worth(NamedTuple):
    """Log-probabilities of texts, in nats per token of the text, averaged over the prompts.

    Attributes:
        scores: after each picture.
        prior: after the mean picture: what a text owes to the language alone.
    """

    scores: Float[np.ndarray, "R C"]
    prior: Float[np.ndarray, " C"]

    @property
    def less_prior(self) -> Float[np.ndarray, "R C"]:
        """What each picture adds: above 0 it makes the text more probable than the mean picture does."""
        less: np.ndarray = self.scores - self.prior
        return less


def score_texts(
    model: Model,
    table: Float[np.ndarray, "R P D"],
    texts: Sequence[str],
    *,
    prompts: Sequence[str] = ("[img]",),
    shots: Sequence[tuple[Float[np.ndarray, "P D"], str]] = (),
    mean: Float[np.ndarray, "P D"] | None = None,
) -> Worth:
    """Scores every text after every picture and after the mean picture.

    Args:
        model: that looks at pictures.
        table: of the pictures, from `model.embed_image`.
        texts: to compare, spelled as in training, which mostly means with a space in front.
        prompts: templates with one `[img]` each; a score is the mean over them.
        shots: other pictures, each with the text that is its answer: they stand before all questions, a line each.
        mean: the mean picture; None: the mean of `table`.

    Raises:
        UserError: no prompt, or one without a picture; and as `Model.score`.
    """
    odd = [prompt for prompt in prompts if prompt.count(IMAGE_MARK) != 1]
    if odd or not prompts:
        raise UserError(f"prompts={tuple(prompts)!r} must be templates with one {IMAGE_MARK} each, such as '[img] a'")
    mean = table.mean(axis=0) if mean is None else mean
    rows = range(len(table) + 1)
    others = [mean, *(prefix for prefix, _ in shots)]
    odd_one = next((other for other in others if np.shape(other) != table.shape[1:]), None)
    if odd_one is not None:
        raise UserError(f"mean and shots are vectors {table.shape[1:]}, as table's; one of them is {np.shape(odd_one)}")
    shown = np.stack([*table, *others])
    scores = np.zeros((len(rows), len(texts)))
    laid = [(place, answer) for place, (_, answer) in enumerate(shots, len(rows))]
    for prompt in prompts:
        asked = [lay_question(prompt, row, shots=laid) for row in rows]
        scores += model.score(asked, texts, normalise=True, prefixes=shown) / len(prompts)
    return Worth(scores[:-1], scores[-1])


def lay_question(prompt: str, row: int, *, shots: Sequence[tuple[int, str]] = ()) -> Prompt:
    """Returns the parts of a prompt that asks about a picture after answered ones, a line each.

    Args:
        prompt: a template.
        row: of the picture.
        shots: rows of answered pictures with their answers.
    """
    before: Prompt = ()
    for place, answer in shots:
        before += (*fill(prompt, Image(place)), f"{answer}\n")
    return before + fill(prompt, Image(row))
