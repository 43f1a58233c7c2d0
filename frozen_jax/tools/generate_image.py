"""`python -m frozen_jax.tools.generate_image --workdir=DIR "a red circle" …`: draws pictures of texts, as PNG files.

Reads the workdir of a run that trained a generator (`config.generator`). The same command draws the same pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.restore import load, read_settings
from frozen_jax.spelling import print_lines
from frozen_jax.workdir import write_bytes_atomic

MOST_PICTURES = 1_000
"""Of one text: all are drawn before the first is written."""


def draw(
    workdir: Path, texts: list[str], *, count: int, seed: int, steps: int | None, guidance: float | None
) -> UInt8[np.ndarray, "R height width 3"]:
    """Draws `count` pictures of each text, one text after the other.

    Args:
        workdir: of a finished or interrupted run.
        texts: captions; the run's `data.caption_format` words them as in training.
        count: pictures of each text.
        seed: of the noise.
        steps: see `api.Model.draw`; None takes the run's `evaluate.generate`.
        guidance: likewise.

    Raises:
        UserError: no run in `workdir`, one without a generator, or a text or option that does not fit.
    """
    config, model = read_settings(workdir), load(workdir)
    settings = config.evaluate.generate
    empty = [text for text in texts if not text.strip()]
    if empty:
        raise UserError(f"a text is {empty[0]!r}; say what to draw, for example 'a red circle'")
    worded = [config.data.caption_format.format(caption=text) for text in texts for _ in range(count)]
    return model.draw(
        worded,
        steps=settings.steps if steps is None else steps,
        guidance=settings.guidance if guidance is None else guidance,
        seed=seed,
    )


def name_files(directory: Path, texts: list[str], *, count: int, overwrite: bool) -> list[Path]:
    """Names a PNG file for each picture after its text, `a_red_circle_0.png`; makes nothing yet.

    Raises:
        UserError: two texts have one name, a file is there and `overwrite` is off, a folder has its name, or
            `directory` cannot be one.
    """
    stems = [re.sub(r"[^\w-]+", "_", text.strip()).strip("_")[:80] or "picture" for text in texts]
    stems = [stem.encode()[:200].decode(errors="ignore") for stem in stems]  # a name has room for 255 bytes
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UserError(f"two texts would both be written to {twice}_0.png; give each once, and --count for more")
    files = [directory / f"{stem}_{number}.png" for stem in stems for number in range(count)]
    try:
        os.listdir(directory)
    except FileNotFoundError:
        pass  # made when there is something to put into it
    except OSError as error:  # a file, or a name that is too long
        raise UserError(f"--out={directory}: cannot be written ({error.strerror}); name another directory") from error
    there = [file for file in files if os.path.lexists(file)]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already; name another --out, or replace it with --overwrite")
    folders = [file for file in there if file.is_dir()]
    if folders:
        raise UserError(f"{folders[0]} is a folder, and a picture would get its name; name another --out")
    return files


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, writes the files and prints their names; exit status 1 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.generate_image",
        description="Draws pictures of texts, as PNG files.",
        epilog='example: python -m frozen_jax.tools.generate_image --workdir=runs/generate "a red circle"',
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run with a generator")
    parser.add_argument("--out", type=Path, default=Path("."), help="directory of the pictures; the present one")
    parser.add_argument("--count", type=int, default=1, help="pictures of each text; 1")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; 0")
    parser.add_argument("--steps", type=int, help="from noise to picture; as the run evaluates")
    parser.add_argument("--guidance", type=float, help="1 follows the text alone, more exaggerates it; likewise")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are there")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        if not 1 <= given.count <= MOST_PICTURES:
            raise UserError(f"--count={given.count} must be at least 1 and at most {MOST_PICTURES}")
        files = name_files(given.out, given.texts, count=given.count, overwrite=given.overwrite)
        pictures = draw(
            given.workdir,
            given.texts,
            count=given.count,
            seed=given.seed,
            steps=given.steps,
            guidance=given.guidance,
        )
        write(given.out, files, pictures, overwrite=given.overwrite)
        print_lines(*files)


def write(
    directory: Path, files: list[Path], pictures: UInt8[np.ndarray, "R height width 3"], *, overwrite: bool
) -> None:
    """Makes the directory and writes each picture to its file, whole or not at all; all of them, if none is replaced.

    Raises:
        UserError: the directory cannot be made, or a file cannot be written, or was made meanwhile and `overwrite` is
            off.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={directory}: cannot be written ({error.strerror}); name another directory") from error
    with contextlib.ExitStack() as undone:
        for file, picture in zip(files, pictures, strict=True):
            encoded = io.BytesIO()
            PIL.Image.fromarray(picture).save(encoded, format="PNG")
            write_bytes_atomic(file, encoded.getvalue(), overwrite=overwrite)
            if not overwrite:  # else a picture of before is gone, and this one as good
                undone.callback(file.unlink)
        undone.pop_all()


if __name__ == "__main__":
    main()
