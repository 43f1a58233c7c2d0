"""`python -m frozen_jax.tools.make_episodes --source=… --out=…`: few-shot episodes from any labelled pictures.

    python -m frozen_jax.tools.make_episodes --source=easy_vqa:test --tag=1 --out=runs/shapes --ways=2 --shots=1 \
        --count=200 --seed=0

Writes the format of the paper's released sets (`tasks/episodes.py`): open-ended episodes, in which a class is called
"dax" or "blicket", or with --real_names by its own name. What each picture shows, its tags, stands in a file beside.
The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image

from frozen_jax.data.binding import PAPER_NAMES
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.order import sample_rng
from frozen_jax.data.records import Source, class_of
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.tasks.episodes import Episode, write_episodes

QUESTION = "Q: What is this? A: This is a"
QUALITY = 95
"""Of the JPEG files."""


def list_classes(source: Source, *, tag: int, shots: int) -> dict[str, list[int]]:
    """Returns the records of each class that has enough for a support set and a question, sorted by name.

    Raises:
        UserError: a record without a picture or without the tag.
    """
    classes: dict[str, list[int]] = {}
    for index in range(len(source)):
        record = source.record(index)
        if record.image is None:
            raise UserError(f"data: record {record.id} has no picture; name a source of tagged pictures")
        classes.setdefault(class_of(record, tag=tag), []).append(index)
    return {name: classes[name] for name in sorted(classes) if len(classes[name]) > shots}


def draw_episode(
    classes: Mapping[str, Sequence[int]], *, ways: int, shots: int, real_names: bool, rng: np.random.Generator
) -> tuple[list[tuple[int, str]], int, str]:
    """Draws one episode: (record, name) of the support set in a random order, the question's record, its name.

    No picture occurs twice in an episode, and each class is as likely to be asked about as any other.
    """
    chosen = [list(classes)[place] for place in rng.choice(len(classes), size=ways, replace=False)]
    names = chosen if real_names else PAPER_NAMES[:ways]
    asked = int(rng.integers(ways))
    support: list[tuple[int, str]] = []
    query = -1
    for place, (label, name) in enumerate(zip(chosen, names, strict=True)):
        drawn = rng.choice(np.asarray(classes[label]), size=shots + (place == asked), replace=False).tolist()
        support += [(record, name) for record in drawn[:shots]]
        query = drawn[-1] if place == asked else query
    return [support[place] for place in rng.permutation(len(support))], query, names[asked]


def make_episodes(
    source: Source, *, ways: int, shots: int, count: int, seed: int, tag: int, real_names: bool, size: int
) -> list[Episode]:
    """Draws episodes from a labelled source; pictures are prepared as for a model and held as JPEG files' bytes.

    Args:
        source: pictures with tags.
        ways: classes per episode, at least 2; at most 5 without `real_names`.
        shots: inner-shots, pictures per class, at least 1.
        count: episodes.
        seed: another seed gives other episodes.
        tag: place of the class among a record's tags, -1: all of them joined.
        real_names: call a class by its own name.
        size: height and width of a picture in pixels.

    Raises:
        UserError: a number out of range, or too few classes with enough pictures.
    """
    if not real_names and ways > len(PAPER_NAMES):
        raise UserError(f"--ways={ways}: there are {len(PAPER_NAMES)} new names; take fewer ways or --real_names")
    if ways < 2 or shots < 1 or count < 1:
        raise UserError(f"--ways={ways} --shots={shots} --count={count}: at least 2, 1 and 1 make an episode")
    classes = list_classes(source, tag=tag, shots=shots)
    if len(classes) < ways:
        raise UserError(
            f"--ways={ways}: the source has {len(classes)} classes with the {shots + 1} pictures that an episode takes "
            "of one; take fewer ways or shots, or another --tag"
        )
    options, encoded = ImageOptions(size=size), dict[int, bytes]()

    def encode(record: int) -> bytes:
        if record not in encoded:
            image = source.record(record).image
            assert image is not None  # list_classes saw one
            file = io.BytesIO()
            PIL.Image.fromarray(load_image(image, options=options)).save(file, "JPEG", quality=QUALITY)
            encoded[record] = file.getvalue()
        return encoded[record]

    episodes = []
    for number in range(count):
        rng = sample_rng(seed, 0, number, stream="episodes")
        support, query, answer = draw_episode(classes, ways=ways, shots=shots, real_names=real_names, rng=rng)
        images = tuple(encode(record) for record, _ in support)
        captions = tuple(f"This is a {name}." for _, name in support)
        descriptions = tuple(class_of(source.record(record), tag=-1) for record in (*(r for r, _ in support), query))
        episodes.append(Episode(images, captions, QUESTION, encode(query), answer, descriptions))
    return episodes


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.make_episodes",
        description="Draws few-shot episodes from tagged pictures.",
        epilog="example: python -m frozen_jax.tools.make_episodes --source=easy_vqa:test --tag=1 --out=runs/episodes",
    )
    parser.add_argument("--source", required=True, help="tagged pictures, one line as in data.train")
    parser.add_argument("--out", required=True, help="folder, or a file that ends in .tar.gz")
    parser.add_argument("--ways", type=int, default=2, help="classes per episode")
    parser.add_argument("--shots", type=int, default=1, help="inner-shots: pictures per class")
    parser.add_argument("--count", type=int, default=2500, help="episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tag", type=int, default=-1, help="place of the class among a picture's tags; -1 joins all")
    parser.add_argument("--real_names", action="store_true", help="call classes by their own names")
    parser.add_argument("--size", type=int, default=224, help="height and width of a picture in pixels")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        episodes = make_episodes(
            open_source(given.source),
            ways=given.ways,
            shots=given.shots,
            count=given.count,
            seed=given.seed,
            tag=given.tag,
            real_names=given.real_names,
            size=given.size,
        )
        task = "real_name_mi" if given.real_names else "open_ended_mi"
        write_episodes(given.out, task=task, ways=given.ways, shots=given.shots, episodes=episodes)
    print(f"{len(episodes)} episodes in {given.out}")


if __name__ == "__main__":
    main()
