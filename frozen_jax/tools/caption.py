"""`python -m frozen_jax.tools.caption --workdir=DIR IMAGE…`: captions pictures; `--question "…"` answers about them.

Reads a workdir that `frozen_jax.main` wrote, its resolved config and its best checkpoint, or a released model by name:
`--workdir=frozen_jax/emoji_smollm2`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from frozen_jax.errors import exit_in_one_line
from frozen_jax.restore import load, read_settings
from frozen_jax.spelling import print_lines


def caption(workdir: Path, images: list[Path], *, question: str | None) -> list[str]:
    """Returns one caption, or one answer, for each picture.

    Args:
        workdir: of a finished or interrupted run, or a released model.
        images: picture files.
        question: asked about each picture; None captions it.

    Raises:
        UserError: no run in `workdir`, or a picture that cannot be read.
    """
    config, model = read_settings(workdir), load(workdir)
    text = "" if question is None else config.data.question_format.format(question=question)
    made = model.generate([[image, text] for image in images], max_new_tokens=config.evaluate.max_new_tokens)
    return [answer.strip() for answer in made]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, prints one line per picture; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.caption",
        description="Captions pictures, or answers a question about each.",
        epilog="example: python -m frozen_jax.tools.caption --workdir=runs/quickstart PICTURE.png",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run, or a released model")
    parser.add_argument("--question", help="answer this about each picture in place of a caption")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        lines = caption(given.workdir, given.images, question=given.question)
    for image, line in zip(given.images, lines, strict=True):
        print_lines(f"{image}: {line}")


if __name__ == "__main__":
    main()
