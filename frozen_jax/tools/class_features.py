"""`python -m frozen_jax.tools.class_features --config=FILE --pictures=SOURCE --names=FILE`: what a classifier knows.

    python -m frozen_jax.tools.class_features --config=configs/stamps_smollm2.py \\
      --pictures="jsonl:data/fetched/stamps/train.jsonl" \\
      --names=data/fetched/imagenet_names/names.json --out=data/fetched/class_features.safetensors

Makes captioned features of the classes of a pre-trained encoder from the classifier in its file and the features of
real pictures, for the source kind `class_features`; how, is in `frozen_jax/class_features.py`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from frozen_jax.build import build_towers
from frozen_jax.class_features import estimate_class_features
from frozen_jax.config import Config
from frozen_jax.config_file import read_config
from frozen_jax.data.class_features import write_class_features
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.features import open_features
from frozen_jax.fetch.split import normalise_caption
from frozen_jax.fetch.wording import make_sentence
from frozen_jax.pretrained_vision import read_weights
from frozen_jax.spelling import print_lines
from frozen_jax.workdir import check_out_file


def make_class_features(config: Config, *, pictures: str, names: Path, out: Path, held_out: str = "") -> int:
    """Writes the file and returns how many features it has.

    Args:
        config: of a run with a pre-trained encoder, `vision.freeze` and `vision.feature_cache`.
        pictures: source of real pictures, one line as in `data.train`.
        names: JSON list of the classes' names in the classifier's order; what stands in parentheses, and alternatives
            behind " / " or " or ", are left out.
        out: gets the features.
        held_out: source whose captions no feature may have, for they are not to be learnt.

    Raises:
        UserError: a config without those, names that cannot be read, a file without a classifier for so many, no class
            that may be learnt, fewer than two pictures that can be used, or no place for the file.
    """
    if not (config.vision.path and config.vision.freeze and config.vision.feature_cache):
        raise UserError(
            "class_features: the config needs vision.path, vision.freeze and vision.feature_cache; set them"
        )
    try:
        classes = json.loads(names.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"class_features: {names} is no JSON list of names ({error}); name another file") from error
    if (
        not isinstance(classes, list)
        or not classes
        or not all(isinstance(name, str) and name.strip() for name in classes)
    ):
        raise UserError(f"class_features: {names} must be a JSON list of names, in the classifier's order")
    shortened = [re.split(r" / | or | \(", name)[0].strip() for name in classes]
    if "" in shortened:
        number = shortened.index("")
        raise UserError(
            f"class_features: {names}: name {number} is {classes[number]!r}, of which nothing is left without what "
            "stands in parentheses or behind ' / ' and ' or '; give it a name"
        )
    check_out_file(out)
    unseen = list_captions(held_out) if held_out else set()
    captions = [make_sentence(name) for name in shortened]
    if all(normalise_caption(caption) in unseen for caption in captions):
        raise UserError(f"class_features: all {len(captions)} classes are captions of {held_out}; hold others out")
    source = open_source(pictures)
    towers = build_towers(config)
    width = towers.model.vision.width  # type: ignore[union-attr]
    weights, biases = find_classifier(read_weights(config.vision.path), classes=len(classes), width=width)
    features, bad = open_features(source, config, towers, name="pictures").load(np.arange(len(source)))
    features = np.delete(features, list(bad), axis=0)
    made = estimate_class_features(features, weights, biases, seed=config.seed)
    captions *= len(made) // len(classes)
    kept = [row for row, caption in enumerate(captions) if normalise_caption(caption) not in unseen]
    write_class_features(out, made[kept], [captions[row] for row in kept])
    return len(kept)


def list_captions(line: str) -> set[str]:
    """Returns the normalised captions of a source's records."""
    source = open_source(line)
    return {normalise_caption(text) for index in range(len(source)) for text in source.record(index).captions}


def find_classifier(
    tensors: Mapping[str, np.ndarray], *, classes: int, width: int
) -> tuple[Float[np.ndarray, "C E"], Float[np.ndarray, " C"]]:
    """Returns kernel and bias of the linear layer from features to classes, known by its shape.

    Raises:
        UserError: there is none, or more than one.
    """
    found = [name for name in tensors if tensors[name].shape == (classes, width)]
    if len(found) != 1 or (bias := found[0].removesuffix("weight") + "bias") not in tensors:
        raise UserError(
            f"class_features: the encoder's file has {len(found)} kernels of {classes} classes x {width} with a bias; "
            "give the names of the classes that it was trained on, and a file with its classifier"
        )
    return tensors[found[0]].astype(np.float64), tensors[bias].astype(np.float64)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.class_features",
        description="Makes captioned features of the classes that a pre-trained encoder can tell apart.",
        epilog="example: python -m frozen_jax.tools.class_features --config=configs/stamps_smollm2.py"
        " --pictures=jsonl:data/fetched/stamps/train.jsonl --names=data/fetched/imagenet_names/names.json",
    )
    parser.add_argument("--config", required=True, help="of the run; --config.KEY=VALUE changes a setting")
    parser.add_argument("--pictures", required=True, help="source of real pictures, as data.train")
    parser.add_argument("--names", type=Path, required=True, help="JSON list of the classes' names")
    parser.add_argument("--out", type=Path, default=Path("data/fetched/class_features.safetensors"))
    parser.add_argument("--held_out", default="", help="source whose captions are left out, as data.train")
    given, settings = parser.parse_known_args(arguments)
    with exit_in_one_line():
        config = read_config([f"--config={given.config}", *settings])
        count = make_class_features(
            config, pictures=given.pictures, names=given.names, out=given.out, held_out=given.held_out
        )
    print_lines(f"{count:,} features in {given.out}")


if __name__ == "__main__":
    main()
