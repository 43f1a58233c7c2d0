"""Pictures that a generator draws of captions, judged by what others read in them; shares in percent.

For each record of the source one picture is drawn from one of its captions, taken in turn. A reader trained on real
pictures (`reader.py`) must find the record's tags in it, a trained captioner may caption it, and its features are
compared with those of the real pictures. Beside it stand: `shuffled` (the same pictures, each judged by another
record's text), `blind` (drawn without a text, from the same noise), and `real` (the records' own pictures). Drawing is
in `api.py`.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int, UInt8

from frozen_jax.api import Model
from frozen_jax.config import Config
from frozen_jax.data.images import load_image
from frozen_jax.data.records import Record
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.metrics.captions import exact_match
from frozen_jax.metrics.frechet import frechet_distance
from frozen_jax.processes import is_first
from frozen_jax.report import make_printable, save_figure
from frozen_jax.restore import load
from frozen_jax.tasks.controls import (
    Models,
    leave_out_pictures,
    read_records,
    shuffle_without_fixed_points,
    source_line,
)
from frozen_jax.tasks.reader import Reader, Reading, train_reader
from frozen_jax.tasks.samples import Measured, Sample, choose_samples

TRAINING_RECORDS = 20_000
"""Of the training source at most so many, its first, teach the reader and are searched for neighbours."""

SHOWN = 8
"""Columns of the pictures that are drawn of a run's samples."""

NEIGHBOURS = 3

COMPARED = 1024
"""Training pictures with which all others are compared at a time."""

Pixels = UInt8[np.ndarray, "_ height width 3"]


def evaluate(config: Config, models: Models, directory: Path) -> Measured:
    """Draws a picture of each record's caption and measures them; writes `generated.png` and `neighbours.png`.

    Raises:
        UserError: records without captions or without the named tags, or a captioner that cannot be loaded.
    """
    settings, model = config.evaluate.generate, models.seeing
    line = source_line(config, settings.source)
    source, taught = (open_source(each, clean=config.data.clean) for each in (line, config.data.train))
    records = _select(read_records(source, most=config.evaluate.examples, data=config.data), config, line)
    training = read_records(taught, most=TRAINING_RECORDS, data=config.data)
    training = _select(leave_out_pictures(training, records, line=config.data.train), config, "data.train")
    real, known = _open(records, config), _open(training, config)
    captions = [record.captions[row % len(record.captions)] for row, record in enumerate(records)]
    worded = [config.data.caption_format.format(caption=caption) for caption in captions]
    options: dict[str, Any] = {"steps": settings.steps, "guidance": settings.guidance, "seed": config.seed}
    drawn = model.draw(worded, **options)
    views = {"seeing": drawn, "blind": model.draw([None] * len(records), **options), "real": real}
    order = shuffle_without_fixed_points(len(records), seed=config.seed)
    figures: dict[str, Any] = {"source": line, "text": worded[0], "n": len(records), **options}
    figures |= {name: {} for name in ("seeing", "shuffled", "blind", "real")}
    readings: dict[str, Reading] = {}
    if settings.tags:
        reader = train_reader(known, [r.tags for r in training], steps=settings.reader_steps, seed=config.seed)
        readings = {name: reader.read(pictures) for name, pictures in views.items()}
        figures |= _describe_reader(reader, records, len(training))
        truths = [record.tags for record in records]
        for name, reading in readings.items():
            figures[name] |= score_tags(reading.tags, truths, settings.tags)
        figures["shuffled"] |= score_tags(readings["seeing"].tags, [truths[row] for row in order], settings.tags)
        kinds = {record.tags for record in records}
        alike = [row for row, record in enumerate(training) if record.tags in kinds]
        alike = alike if len(alike) > 1 else list(range(len(training)))
        for name, distance in compare_features(readings, reader.read(known[alike]).features).items():
            figures[name]["frechet"] = distance
    if settings.captioner:
        captioner = load(settings.captioner)
        for name, pictures in views.items():
            figures[name]["caption_match"] = share_captioned(captioner, pictures, records, config)
    flip = config.data.augment.flip
    nearest = {name: find_nearest(pictures, known, flip=flip) for name, pictures in views.items()}
    for name, found in nearest.items():
        figures[name]["nearest_train_rms"] = round(float(np.median(found.distances[:, 0])), 2)
    if is_first():
        draw_generated(directory / "generated.png", captions, drawn)
        draw_neighbours(directory / "neighbours.png", captions, drawn, known, nearest["seeing"])
    read = readings["seeing"].tags if readings else [()] * len(records)
    return Measured({"generate": figures}, _collect(records, captions, drawn, read, config))


def _select(records: Sequence[Record], config: Config, name: str) -> list[Record]:
    """Returns the records that can be used, a caption and a tag at each named place, without their other tags."""
    tags = config.evaluate.generate.tags
    whole = (record for record in records if record.captions and len(record.tags) >= len(tags))
    usable = [record._replace(tags=record.tags[: len(tags)]) for record in whole]
    if len(usable) < 2:
        raise UserError(
            f"evaluate.generate: {len(usable)} of the {len(records)} records of {name} have a caption"
            f"{f' and tags at the places {tags}' if tags else ''}; two are needed: name another source or other tags"
        )
    return usable


def _open(records: Sequence[Record], config: Config) -> Pixels:
    pictures = [load_image(record.image, options=config.data.image) for record in records if record.image is not None]
    return np.stack(pictures)


def _describe_reader(reader: Reader, records: Sequence[Record], trained_on: int) -> dict[str, Any]:
    """Returns what the reader is, and how often the commonest tags alone would be right."""
    commonest = Counter(record.tags for record in records).most_common(1)[0][1]
    about = f"nf_resnet_small of this run's seed, trained on {trained_on} real pictures"
    return {"reader": about, "chance": round(100 * commonest / len(records), 2)}


def score_tags(
    read: Sequence[tuple[str, ...]], asked: Sequence[tuple[str, ...]], names: Sequence[str]
) -> dict[str, float]:
    """Returns the share of pictures in which each asked tag was read, and in which all were (`accuracy`)."""
    pairs = [zip(*pair, strict=True) for pair in zip(read, asked, strict=True)]
    right = np.array([[one == other for one, other in pair] for pair in pairs])
    shares = dict(zip(names, right.mean(axis=0).tolist(), strict=True)) | {"accuracy": float(right.all(axis=1).mean())}
    return {name: round(100 * share, 2) for name, share in shares.items()}


def compare_features(readings: dict[str, Reading], training: Float[np.ndarray, "R E"]) -> dict[str, float]:
    """Returns the Fréchet distance of each view from the real pictures, of these from the training pictures.

    The latter is the floor: two sets of real pictures, of the same sizes as the others.

    Args:
        readings: of each view.
        training: features of training pictures of the kinds that are tested.
    """
    real = readings["real"].features
    distances = {name: frechet_distance(reading.features, real) for name, reading in readings.items() if name != "real"}
    spread = np.linspace(0, len(training) - 1, min(len(training), len(real))).astype(int)
    return {name: round(d, 4) for name, d in {**distances, "real": frechet_distance(training[spread], real)}.items()}


def share_captioned(captioner: Model, pictures: Pixels, records: Sequence[Record], config: Config) -> float:
    """Returns the share of pictures to which a captioner gives only captions that their record has.

    A caption may be several of a record's captions, joined by ". ", as training rows are.
    """
    settings = config.evaluate.caption
    prompts = [[picture] for picture in pictures]
    texts = captioner.generate(prompts, max_new_tokens=config.evaluate.max_new_tokens, stop=settings.stop)
    hits = [
        all(exact_match(sentence, record.captions) for sentence in text.strip().split(". "))
        for text, record in zip(texts, records, strict=True)
    ]
    return round(100 * float(np.mean(hits)), 2)


class Nearest(NamedTuple):
    """The training pictures nearest to each of R pictures, the nearest first.

    Attributes:
        numbers: of the training pictures.
        mirrored: whether it is the training picture's mirror image that is so near.
        distances: root mean squares over pixels, 0..255.
    """

    numbers: Int[np.ndarray, "R N"]
    mirrored: Bool[np.ndarray, "R N"]
    distances: Float[np.ndarray, "R N"]


def find_nearest(pictures: Pixels, training: Pixels, *, flip: bool = False) -> Nearest:
    """Finds the `NEIGHBOURS` training pictures that are nearest to each picture.

    Args:
        pictures: to compare.
        training: to search.
        flip: training showed mirror images, too: of each picture that one counts which is nearer.
    """

    def flatten(views: Pixels) -> Float[np.ndarray, "R N"]:
        flat: np.ndarray = views.reshape(len(views), -1).astype(np.float32)
        return flat

    def compare(views: Pixels) -> Float[np.ndarray, "R K"]:
        one, columns = flatten(views), []
        for start in range(0, len(training), COMPARED):  # all of them in float32 would take gigabytes
            known = flatten(training[start : start + COMPARED])
            columns.append(np.square(known).sum(1)[None] - 2 * one @ known.T)
        squares: np.ndarray = np.square(one).sum(1)[:, None] + np.concatenate(columns, axis=1)
        return squares

    # A picture is as far from a mirror image as its own mirror image from the original.
    sides = np.stack([compare(pictures), compare(pictures[:, :, ::-1])] if flip else [compare(pictures)])
    order = np.argsort(sides.min(axis=0), axis=1)[:, :NEIGHBOURS]
    mirrored = np.take_along_axis(sides.argmin(axis=0), order, axis=1) == 1
    # Measured anew: of large numbers' small difference little is left.
    distances = np.zeros(order.shape)
    for row, place in np.ndindex(*order.shape):
        other = training[order[row, place]]
        other = other[:, ::-1] if mirrored[row, place] else other
        distances[row, place] = np.sqrt(np.mean(np.square(pictures[row].astype(np.float64) - other)))
    return Nearest(order, mirrored, distances)


def _collect(
    records: Sequence[Record],
    captions: Sequence[str],
    drawn: Pixels,
    read: Sequence[tuple[str, ...]],
    config: Config,
) -> list[Sample]:
    """Chooses samples for the picture page; without tags nobody says which are right, and there are none."""
    scores = [float(tags == record.tags) for tags, record in zip(read, records, strict=True)]
    if not config.evaluate.generate.tags:
        return []
    return [
        Sample(
            "generated",
            (captions[row] + "\n", PIL.Image.fromarray(drawn[row])),
            " ".join(read[row]),
            (" ".join(records[row].tags),),
            scores[row],
        )
        for row in choose_samples(scores, seed=config.seed)
    ]


def draw_generated(path: Path, captions: Sequence[str], drawn: Pixels) -> None:
    """Draws the first pictures under their captions."""
    cells = [(drawn[row], captions[row]) for row in range(min(4 * SHOWN, len(drawn)))]
    _draw_grid(path, [cells[start : start + SHOWN] for start in range(0, len(cells), SHOWN)])


def draw_neighbours(path: Path, captions: Sequence[str], drawn: Pixels, training: Pixels, nearest: Nearest) -> None:
    """Draws the first pictures, and below each the training pictures that are nearest to it, mirrored if so."""
    shown = range(min(SHOWN, len(drawn)))
    grid = [[(drawn[row], captions[row]) for row in shown]]
    for place in range(nearest.numbers.shape[1]):
        grid.append([_show_neighbour(training, nearest, row, place) for row in shown])
    _draw_grid(path, grid)


def _show_neighbour(
    training: Pixels, nearest: Nearest, row: int, place: int
) -> tuple[UInt8[np.ndarray, "height width 3"], str]:
    picture, distance = training[nearest.numbers[row, place]], nearest.distances[row, place]
    if nearest.mirrored[row, place]:
        return picture[:, ::-1], f"training, mirrored, {distance:.1f}"
    return picture, f"training, {distance:.1f}"


def _draw_grid(path: Path, grid: Sequence[Sequence[tuple[UInt8[np.ndarray, "height width 3"], str]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(grid), SHOWN, figsize=(1.6 * SHOWN, 1.9 * len(grid)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, grid, strict=True):
        for axis, (picture, words) in zip(line, row, strict=False):
            axis.imshow(picture)
            title = textwrap.fill(make_printable(words), 28, max_lines=2, placeholder=" …")
            axis.set_title(title, fontsize=7, parse_math=False)
    figure.set_layout_engine("tight", pad=0.4)
    save_figure(figure, path)
    pyplot.close(figure)
