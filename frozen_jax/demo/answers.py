"""What the web page can ask a model: caption, answer, few-shot prompt with alternatives, names, a gallery ranked for a
text; or, of a fusion, the class of a picture and a text; or, of a generator, pictures of a text.

Plain functions of `api.Model`, without a browser; next: `layout.py`, which shows them.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from frozen_jax.api import Model, Picture
from frozen_jax.data.folders import PICTURES, existing_folder, walk
from frozen_jax.data.images import ImageError, load_image
from frozen_jax.demo.examples import Example
from frozen_jax.demo.wording import Wording
from frozen_jax.errors import UserError
from frozen_jax.export.layout import is_export
from frozen_jax.fusing import fuse
from frozen_jax.meter import Meter
from frozen_jax.naming import score_texts
from frozen_jax.prompt import IMAGE_MARK
from frozen_jax.restore import load, read_settings

LONGEST = 500
"""Characters of a question, of the words beside a picture and of all alternatives together."""
ALTERNATIVES = 12
NAMES, NAMES_LONGEST = 50, 1000
"""Names that a picture is compared with, and characters of all together."""
DRAWN = 4
"""Pictures of a text, at most."""
GALLERY = 500
"""Pictures of a gallery, the first ones by name."""


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
class Naming:
    """How well names fit a picture, and what it took.

    Attributes:
        names: (name, share of it among these, nats per token that the picture adds to it), the likeliest first.
        seconds, compile_s: as of an answer.
        prompts: what the model read before each name, verbatim.
    """

    names: tuple[tuple[str, float, float], ...]
    seconds: float
    compile_s: float
    prompts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Pictures of a text, what it took, and the text as the model read it."""

    pictures: UInt8[np.ndarray, "R height width 3"]
    seconds: float
    compile_s: float
    prompt: str


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

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        wording: Wording,
        examples: Sequence[Path],
        gallery: Sequence[Path] = (),
    ):
        """Encodes the gallery and the examples.

        Args:
            model: that answers.
            name: of it, for people.
            wording: of its prompts.
            examples: at least one picture; the mean of these and of the gallery is the mean picture for names.
            gallery: pictures that can be searched.

        Raises:
            UserError: one of the pictures cannot be opened.
        """
        self.model, self.name, self.wording, self.gallery = model, name, wording, tuple(gallery)
        kinds = {device.device_kind for leaf in jax.tree.leaves(model.params) for device in leaf.devices()}
        self.device = ", ".join(sorted(kind.upper() if kind == "cpu" else kind for kind in kinds))
        self._lock = threading.Lock()
        if model.network.prefix is not None:
            known = model.embed_image([*self.gallery, *examples])
            self._table, self._mean = known[: len(self.gallery)], known.mean(axis=0)

    @property
    def draws(self) -> bool:
        """Whether the model draws pictures; it reads none then, and writes no words."""
        return self.model.network.generator is not None

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
        wanted = list_alternatives(alternatives, "alternatives")
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

    def name_picture(self, picture: Picture | None, names: str) -> Naming:
        """Says how well names fit a picture: as classes, of which one is right, and as tags, each by itself.

        The first is the softmax of the names' log-probabilities per token, as in the task `classify`; the second is the
        log-probability per token less that after the mean picture, as in the task `tag`.

        Args:
            picture: that is named.
            names: separated by commas or line ends.

        Raises:
            UserError: no picture or no names, too many of them, or one that the language model has no room for.
        """
        given, wanted = _given(picture), list_alternatives(names, "names", most=NAMES, longest=NAMES_LONGEST)
        if not wanted:
            raise UserError("There are no names yet. Type some, separated by commas.")
        with self._lock, (meter := Meter()).time():
            table = self.model.embed_image([given])
            texts = [self.wording.name.format(name=name) for name in wanted]
            worth = score_texts(self.model, table, texts, prompts=self.wording.naming, mean=self._mean)
        shares = np.exp(worth.scores[0] - np.logaddexp.reduce(worth.scores[0]))
        rows = zip(wanted, shares.tolist(), worth.less_prior[0].tolist(), strict=True)
        ranked = tuple(sorted(rows, key=lambda row: -row[1]))
        return Naming(ranked, meter.seconds, meter.compile_s, self.wording.naming)

    def draw(self, text: str, seed: int | float | None, count: int | float | None) -> Drawing:
        """Draws pictures of a text, the same ones for the same seed, by a model with a generator.

        Args:
            text: a caption; it is worded as in training.
            seed: a whole number in 0..2**31 - 1.
            count: of pictures, 1..`DRAWN`, each from noise of its own.

        Raises:
            UserError: no text, one that is too long, or a number out of range.
        """
        worded = self.wording.caption.format(caption=_words(text, "The text"))
        number = _whole(seed, "The seed", least=0, most=2**31 - 1)
        texts = [worded] * _whole(count, "The number of pictures", least=1, most=DRAWN)
        with self._lock, (meter := Meter()).time():
            drawn = self.model.draw(texts, steps=self.wording.steps, guidance=self.wording.guidance, seed=number)
        return Drawing(drawn, meter.seconds, meter.compile_s, worded)

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

    def retrieve(self, text: str) -> Ranking:
        """Ranks the gallery for a text.

        A picture's score is the text's log-probability after it, less that after the gallery's mean picture, per token:
        above 0 the picture makes the text more probable than no particular picture does.

        Raises:
            UserError: no text, or no gallery.
        """
        if not self.gallery:
            raise UserError("There is no gallery. Start the demo with --gallery=FOLDER.")
        wanted = f" {_words(text, 'The text')}"
        with self._lock, (meter := Meter()).time():
            scores = score_texts(self.model, self._table, [wanted]).less_prior[:, 0]
        order = np.argsort(-scores, kind="stable")
        return Ranking(tuple(order.tolist()), tuple(scores[order].tolist()), meter.seconds, meter.compile_s)

    def warm_up(self, example: Example) -> None:
        """Asks what is asked first, so that nobody waits for its compilation."""
        if self.draws:
            self.draw(example.caption, 0, DRAWN)
        elif self.fusion:
            self.classify(example.path, "what is this?")
        else:
            self.ask(example.path, "what is this?")
            self.caption(example.path)

    def describe(self) -> str:
        """Returns in one line what answers: encoder and prefix or generator, language model, where it computes."""
        network, lm = self.model.network, self.model.network.lm.config
        sizes = {tower: sum(leaf.size for leaf in jax.tree.leaves(tree)) for tower, tree in self.model.params.items()}
        blind = " · blind: every picture is black to this model" if self.model.blind else ""
        encoder = f"{type(network.vision).__name__} encoder"
        if network.generator is not None:
            side = network.generator.config.image_size
            seen = f"draws {side} x {side} pixels · generator of {_count(sizes['generator'])} parameters"
        elif network.fusion is not None:
            seen = f"{encoder} · fusion {self.fusion}, {len(network.fusion.classes)} classes"
        else:
            seen = f"{encoder} · {network.prefix_length} prefix vectors for each picture"
        reader = "language model" if network.fusion is None else "text side"
        read = f"{reader} {lm.to_hf()['model_type']}, {lm.layers} layers, {_count(sizes['lm'])} parameters"
        return f"{seen} · {read} · on {self.device}{blind}"

    def _complete(self, parts: Sequence[str | Picture], *, stop: tuple[str, ...]) -> Answer:
        with self._lock, (meter := Meter()).time():
            text = self.model.generate([parts], max_new_tokens=self.wording.max_new_tokens, stop=stop)[0]
        shown = "".join(part if isinstance(part, str) else IMAGE_MARK for part in parts)
        return Answer(text.strip(), text, meter.seconds, meter.compile_s, shown)


def open_demo(path: Path, *, examples: Sequence[Path], gallery: Path | None = None) -> Demo:
    """Loads what `frozen_jax.load` does, and the pictures of a folder.

    Args:
        path: a run's workdir, also that of a fusion or a generator, a released model or an exported directory. An
            export does not say how it was asked in training: it is asked with the wording that is the default of
            `config.evaluate`.
        examples: pictures to try the page with, see `Demo`.
        gallery: folder of pictures, those below it included; files that are no pictures are left out.

    Raises:
        UserError: as `frozen_jax.load`; a model of text alone; no folder, no picture in it, or one for a fusion or a
            generator, which rank none.
    """
    wording = Wording() if is_export(path) else Wording.of(read_settings(path))
    model = load(path)
    network = model.network
    if network.vision is None and network.generator is None:
        raise UserError(
            f"{path} looks at no pictures (vision.name is '') and draws none; the demo needs a model that does"
        )
    if network.prefix is None and gallery is not None:
        does = "names classes" if network.generator is None else "draws pictures"
        raise UserError(f"--gallery={gallery}: {path} {does} and ranks no pictures; leave the gallery out")
    found = [] if gallery is None else find_pictures(gallery, model)
    return Demo(model, name=path.resolve().name, wording=wording, examples=examples, gallery=found)


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


def list_alternatives(text: str, what: str, *, most: int = ALTERNATIVES, longest: int = LONGEST) -> list[str]:
    """Returns the different alternatives in a text that separates them by commas or line ends.

    Args:
        text: from a person.
        what: they are, for people.
        most: of them.
        longest: characters of all together.

    Raises:
        UserError: more than `most`, or too long.
    """
    _check_length(text, f"The list of {what}", longest)
    found = list(dict.fromkeys(one.strip() for one in text.replace("\n", ",").split(",") if one.strip()))
    if len(found) > most:
        raise UserError(f"{len(found)} {what} are too many. Give at most {most}.")
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


def _whole(number: int | float | None, what: str, *, least: int, most: int) -> int:
    if number is None or not least <= number <= most or number != int(number):
        raise UserError(f"{what} must be a whole number from {least} to {most}.")
    return int(number)


def _check_length(text: str, what: str, longest: int = LONGEST) -> None:
    if len(text) > longest:
        raise UserError(f"{what} has {len(text)} characters. Use at most {longest}.")


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
