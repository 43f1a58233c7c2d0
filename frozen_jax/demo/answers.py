"""What the web page can ask a model: caption, answer, few-shot prompt with alternatives, a gallery ranked for a text;
or, of a fusion, the class of a picture and a text.

Plain functions of `api.Model`, without a browser; next: `layout.py`, which shows them.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from frozen_jax.api import Model, Picture
from frozen_jax.config import Config
from frozen_jax.data.folders import PICTURES, existing_folder, walk
from frozen_jax.data.images import ImageError, load_image
from frozen_jax.errors import UserError
from frozen_jax.evaluate_settings import CaptionSettings, EvaluateSettings, VQASettings
from frozen_jax.export.layout import is_export
from frozen_jax.fusing import fuse
from frozen_jax.fusion_settings import FusionSettings
from frozen_jax.meter import Meter
from frozen_jax.prompt import IMAGE_MARK, Image
from frozen_jax.restore import load, read_settings

LONGEST = 500
"""Characters of a question, of the words beside a picture and of all alternatives together."""
ALTERNATIVES = 12
GALLERY = 500
"""Pictures of a gallery, the first ones by name."""


@dataclasses.dataclass(frozen=True)
class Wording:
    """How a model wants to be asked: as it was in training and in its evaluation.

    Attributes:
        question: what follows the picture, with `{question}`.
        caption_stop, answer_stop: a text ends before the first of these.
        max_new_tokens: of a text.
        item: what a fusion reads beside the picture, as `config.fusion.item` calls it.
    """

    question: str = VQASettings().query_format.removeprefix(IMAGE_MARK)
    caption_stop: tuple[str, ...] = CaptionSettings().stop
    answer_stop: tuple[str, ...] = VQASettings().stop
    max_new_tokens: int = EvaluateSettings().max_new_tokens
    item: str = FusionSettings().item

    @classmethod
    def of(cls, config: Config) -> Wording:
        """Returns that of a run."""
        asked = config.evaluate
        stops = (asked.caption.stop, asked.vqa.stop)
        return cls(config.data.question_format, *stops, asked.max_new_tokens, config.fusion.item)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A text and what it took.

    Attributes:
        text: without spaces around it.
        spelled: the same as the model spelled it.
        seconds: from the call to the text, compilation included.
        compile_s: of these, compiling for a length or number of pictures that is new.
        prompt: what the model read, verbatim, `[img]` for each picture.
        alternatives: (text, probability after this prompt, share of it among these), the most probable first.
    """

    text: str
    spelled: str
    seconds: float
    compile_s: float
    prompt: str
    alternatives: tuple[tuple[str, float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes with their probabilities, the most probable first, and what it took."""

    probabilities: tuple[tuple[str, float], ...]
    seconds: float
    compile_s: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Rows of a gallery, best first, with their scores in nats per token, and what it took."""

    rows: tuple[int, ...]
    scores: tuple[float, ...]
    seconds: float
    compile_s: float


class Demo:
    """A model with its wording and a gallery; one call computes at a time, others wait.

    Attributes:
        model: that answers.
        name: of the model, for people.
        wording: of its prompts.
        gallery: pictures that can be searched.
        device: that computes, by its maker's name.
    """

    def __init__(self, model: Model, *, name: str, wording: Wording, gallery: Sequence[Path] = ()):
        """Encodes the gallery.

        Raises:
            UserError: a picture of the gallery cannot be opened.
        """
        self.model, self.name, self.wording, self.gallery = model, name, wording, tuple(gallery)
        kinds = {device.device_kind for leaf in jax.tree.leaves(model.params) for device in leaf.devices()}
        self.device = ", ".join(sorted(kind.upper() if kind == "cpu" else kind for kind in kinds))
        self._lock = threading.Lock()
        self._table = model.embed_image(self.gallery) if self.gallery else None

    def caption(self, picture: Picture | None) -> Answer:
        """Captions a picture.

        Raises:
            UserError: no picture, or one that cannot be used.
        """
        return self._complete([_given(picture), ""], stop=self.wording.caption_stop)

    def ask(self, picture: Picture | None, question: str) -> Answer:
        """Answers a question about a picture.

        Raises:
            UserError: no picture or question, or one that cannot be used.
        """
        parts = [_given(picture), self.wording.question.format(question=_words(question, "The question"))]
        return self._complete(parts, stop=self.wording.answer_stop)

    def continue_prompt(
        self, shots: Sequence[tuple[Picture | None, str]], picture: Picture | None, words: str, alternatives: str = ""
    ) -> Answer:
        """Continues a few-shot prompt and compares alternatives to what the model says.

        Args:
            shots: pictures with the words that follow each; pairs without a picture and words are left out.
            picture: asked about.
            words: after it, up to where the model goes on; none: it goes on after the picture.
            alternatives: separated by commas or line ends; the model's own answer is added to them.

        Returns:
            The answer with the probability of each alternative.

        Raises:
            UserError: a shot without its picture or words, no last picture, or more than the model has room for.
        """
        parts: list[str | Picture] = []
        for number, (shot, text) in enumerate(shots, 1):
            if shot is None and not text.strip():
                continue
            if shot is None or not text.strip():
                lacks = "picture" if shot is None else "words"
                raise UserError(f"Example {number} has no {lacks}. Add it, or empty the example.")
            parts += [shot, f" {_words(text, f'Example {number}')}"]
        parts += [_given(picture), *([f" {_words(words, 'The last text')}"] if words.strip() else [])]
        wanted = list_alternatives(alternatives)
        answer = self._complete(parts, stop=self.wording.answer_stop)
        if not wanted:
            return answer
        spelled = {text: f" {text}" for text in wanted}
        if answer.text:  # as the model spelled it: its text may begin without a space
            spelled.setdefault(answer.text, answer.spelled)
        with self._lock, (meter := Meter()).time():
            scores = self.model.score([parts], list(spelled.values()))[0].astype(np.float64)
        shares = np.exp(scores - np.logaddexp.reduce(scores))
        ranked = sorted(zip(spelled, np.exp(scores).tolist(), shares.tolist(), strict=True), key=lambda row: -row[1])
        return dataclasses.replace(
            answer,
            seconds=answer.seconds + meter.seconds,
            compile_s=answer.compile_s + meter.compile_s,
            alternatives=tuple(ranked),
        )

    @property
    def fusion(self) -> str:
        """How picture and text are joined to name a class, as `config.fusion.kind`; "" in a model of words."""
        fusion = self.model.network.fusion
        return "" if fusion is None else fusion.kind

    def classify(self, picture: Picture | None, text: str = "") -> Classes:
        """Returns the probability of every class of a fusion for a picture and a text.

        Args:
            picture: asked for by every kind, also by that which reads the text alone.
            text: as in training; the kind "image" reads none.

        Raises:
            UserError: no picture or text, one that cannot be used, or the model is no fusion.
        """
        item = (_given(picture), "" if self.fusion == "image" else _words(text, f"The {self.wording.item}"))
        with self._lock, (meter := Meter()).time():
            made = fuse(self.model, [item]).probabilities[0].tolist()
        fusion = self.model.network.fusion
        ranked = sorted(zip(fusion.classes if fusion else (), made, strict=True), key=lambda row: -row[1])
        return Classes(tuple(ranked), meter.seconds, meter.compile_s)

    def warm_up(self, picture: Picture) -> None:
        """Asks what is asked first, so that nobody waits for its compilation."""
        if self.fusion:
            self.classify(picture, "what is this?")
        else:
            self.ask(picture, "what is this?")
            self.caption(picture)

    def retrieve(self, text: str) -> Ranking:
        """Ranks the gallery for a text.

        A picture's score is the text's log-probability after it, less that after the gallery's mean picture, per token:
        above 0 the picture makes the text more probable than no particular picture does.

        Raises:
            UserError: no text, or no gallery.
        """
        if self._table is None:
            raise UserError("There is no gallery. Start the demo with --gallery=FOLDER.")
        wanted = f" {_words(text, 'The text')}"
        with self._lock, (meter := Meter()).time():
            table = np.concatenate([self._table, self._table.mean(axis=0, keepdims=True)])
            prompts = [[Image(row)] for row in range(len(table))]
            scores = self.model.score(prompts, [wanted], normalise=True, prefixes=table)[:, 0]
        scores = scores[:-1] - scores[-1]
        order = np.argsort(-scores, kind="stable")
        return Ranking(tuple(order.tolist()), tuple(scores[order].tolist()), meter.seconds, meter.compile_s)

    def describe(self) -> str:
        """Returns in one line what answers: encoder, prefix, language model, where it computes."""
        network, lm = self.model.network, self.model.network.lm.config
        count = sum(leaf.size for leaf in jax.tree.leaves(self.model.params["lm"]))
        blind = " · blind: every picture is black to this model" if self.model.blind else ""
        joined, reader = f"{network.prefix_length} prefix vectors for each picture", "language model"
        if network.fusion is not None:
            joined, reader = f"fusion {self.fusion}, {len(network.fusion.classes)} classes", "text side"
        return (
            f"{type(network.vision).__name__} encoder · {joined} · "
            f"{reader} {lm.to_hf()['model_type']}, {lm.layers} layers, {_count(count)} parameters · "
            f"on {self.device}{blind}"
        )

    def _complete(self, parts: Sequence[str | Picture], *, stop: tuple[str, ...]) -> Answer:
        with self._lock, (meter := Meter()).time():
            text = self.model.generate([parts], max_new_tokens=self.wording.max_new_tokens, stop=stop)[0]
        shown = "".join(part if isinstance(part, str) else IMAGE_MARK for part in parts)
        return Answer(text.strip(), text, meter.seconds, meter.compile_s, shown)


def open_demo(path: Path, *, gallery: Path | None = None) -> Demo:
    """Loads what `frozen_jax.load` does, and the pictures of a folder.

    Args:
        path: a run's workdir, also that of a fusion, a released model or an exported directory. An export does not say
            how it was asked in training: it is asked with the wording of `config.evaluate.vqa`.
        gallery: folder of pictures, those below it included; files that are no pictures are left out.

    Raises:
        UserError: as `frozen_jax.load`; a model that looks at no pictures; no folder, no picture in it, or one for a
            fusion, which ranks none.
    """
    wording = Wording() if is_export(path) else Wording.of(read_settings(path))
    model = load(path)
    if model.network.vision is None:
        raise UserError(f"{path} looks at no pictures (vision.name is ''); the demo needs a model that does")
    if model.network.fusion is not None and gallery is not None:
        raise UserError(f"--gallery={gallery}: {path} names classes and ranks no pictures; leave the gallery out")
    found = [] if gallery is None else find_pictures(gallery, model)
    return Demo(model, name=path.resolve().name, wording=wording, gallery=found)


def find_pictures(folder: Path, model: Model) -> list[Path]:
    """Returns the pictures below a folder that a model can open, at most `GALLERY`.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    found: list[Path] = []
    for name in walk(existing_folder(folder)):
        path = folder.expanduser() / name
        if name.lower().endswith(PICTURES) and len(found) < GALLERY:
            try:
                load_image(path, options=model.images)
            except ImageError:
                continue
            found.append(path)
    if not found:
        raise UserError(f"--gallery={folder} holds no picture that can be opened ({', '.join(PICTURES)})")
    return found


def list_alternatives(text: str) -> list[str]:
    """Returns the different alternatives in a text that separates them by commas or line ends.

    Raises:
        UserError: more than `ALTERNATIVES`, or too long.
    """
    _check_length(text, "The list of alternatives")
    found = list(dict.fromkeys(one.strip() for one in text.replace("\n", ",").split(",") if one.strip()))
    if len(found) > ALTERNATIVES:
        raise UserError(f"{len(found)} alternatives are too many. Give at most {ALTERNATIVES}.")
    return found


def _given(picture: Picture | None) -> Picture:
    if picture is None:
        raise UserError("There is no picture yet. Drop one in, or choose an example.")
    return picture


def _words(text: str, what: str) -> str:
    if not text.strip():
        raise UserError(f"{what} is empty. Type some words first.")
    _check_length(text, what)
    return text.strip()


def _check_length(text: str, what: str) -> None:
    if len(text) > LONGEST:
        raise UserError(f"{what} has {len(text)} characters. Use at most {LONGEST}.")


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
