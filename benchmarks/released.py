"""What a released model says of pictures that it was not trained on: the figures and the pictures of its card.

    python -m frozen_jax.tools.fetch_data emoji wordnet
    PYTHONPATH=. python benchmarks/released.py --model=frozen_jax/emoji_smollm2 --out=docs

By the task `caption`: held-out emoji, and the first test pictures of easy-VQA, whose captions are right when colour and
shape are. Beside the model's own figures stand those of shuffled pictures and of the commonest training caption.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import frozen_jax
from frozen_jax.restore import read_settings
from frozen_jax.tasks import caption
from frozen_jax.tasks.controls import Models

EMOJI = "jsonl:data/fetched/emoji"
SETS = {
    "emoji": (f"{EMOJI}/train.jsonl", f"{EMOJI}/heldout.jsonl", 0),
    "easy_vqa": ("easy_vqa:validation?captions=sentences", "easy_vqa:test?captions=sentences", 200),
}
"""Training captions, pictures and how many of them (0: all), by name."""


def main() -> None:
    """Parses the command line, prints the figures as JSON and draws OUT/released_SET_captions.png."""
    parser = argparse.ArgumentParser(description="Measures a released model.", allow_abbrev=False)
    parser.add_argument("--model", default="frozen_jax/emoji_smollm2", help="its name, or its directory")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config, models = read_settings(given.model), Models(frozen_jax.load(given.model))
    for name, (training, pictures, count) in SETS.items():
        asked = dataclasses.replace(
            config.evaluate,
            report=f"released_{name}",
            examples=count,
            caption=dataclasses.replace(config.evaluate.caption, source=pictures),
        )
        learnt = dataclasses.replace(config.data, train=training)
        measured = caption.evaluate(dataclasses.replace(config, evaluate=asked, data=learnt), models, given.out)
        print(json.dumps(measured.figures, indent=2), flush=True)


if __name__ == "__main__":
    main()
