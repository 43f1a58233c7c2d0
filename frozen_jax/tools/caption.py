"""`python -m frozen_jax.tools.caption --workdir=DIR IMAGE…`: captions pictures; `--question "…"` answers about them.

Reads a workdir that `frozen_jax.main` wrote: its resolved config and its best checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from frozen_jax.config import from_config_dict
from frozen_jax.data.images import load_image
from frozen_jax.errors import UserError
from frozen_jax.run import load_reader


def caption(workdir: Path, images: list[Path], *, question: str | None) -> list[str]:
    """Returns one caption, or one answer, for each picture.

    Args:
        workdir: of a finished or interrupted run.
        images: picture files.
        question: asked about each picture; None captions it.

    Raises:
        UserError: no run in `workdir`, or a picture that cannot be read.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json); give the --workdir of a training run")
    config = from_config_dict(json.loads(path.read_text(encoding="utf-8")))
    if not config.vision.name:
        raise UserError(f"{workdir} was trained on text alone (vision.name is ''); it cannot look at pictures")
    pixels = np.stack([load_image(image, options=config.data.image) for image in images])
    reader = load_reader(config, workdir)
    text = "" if question is None else config.data.question_format.format(question=question)
    prompts = [(reader.image(row), text) for row in range(len(images))]
    return [answer.strip() for answer in reader.ask(prompts, reader.prefixes(pixels))]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, prints one line per picture; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m frozen_jax.tools.caption", description="Captions pictures.")
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run")
    parser.add_argument("--question", help="answer this about each picture in place of a caption")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    given = parser.parse_args(arguments)
    try:
        lines = caption(given.workdir, given.images, question=given.question)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for image, line in zip(given.images, lines, strict=True):
        print(f"{image}: {line}")


if __name__ == "__main__":
    main()
