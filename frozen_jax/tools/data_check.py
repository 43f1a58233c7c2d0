"""`python -m frozen_jax.tools.data_check --config=FILE`: reads all of a config's data and says what is in it.

Prints the figures, writes `NAME.json`, `NAME.manifest` and `NAME.png` (a grid of samples) to `--output`, and exits with
status 1 if any item is bad. `--source` checks one source without a config. The work is done in `data/inspection.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from frozen_jax.build import resolve_path
from frozen_jax.config_file import read_config
from frozen_jax.data.cleaning import CleanOptions
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.inspection import inspect_source, sample_grid, write_manifest
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.spelling import spell
from frozen_jax.tokenizer import Tokenizer


def check(
    line: str,
    *,
    name: str,
    images: ImageOptions,
    clean: CleanOptions | None,
    output: Path,
    encode: Callable[[str], Sequence[int]] | None,
    vocab_size: int,
) -> dict[str, Any]:
    """Inspects one source, prints and writes what was found, and returns the figures.

    Args:
        line: the source, as in a config.
        name: of the files that are written.
        images: preparation of pictures.
        clean: cleaning of captions.
        output: folder for the files.
        encode: text to token ids, or None.
        vocab_size: of the tokenizer; 0 without one.

    Raises:
        UserError: the source cannot be opened, or `output` cannot be written.
    """
    source = open_source(line, clean=clean)
    with _naming(output):  # before the work
        output.mkdir(parents=True, exist_ok=True)

    def tell(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {len(source)}", end="", file=sys.stderr)

    found = inspect_source(source, images=images, encode=encode, progress=tell)
    shown = spell(line)  # a folder's name may be no UTF-8
    figures = {"source": shown, **found.summary(vocab_size=vocab_size)}
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    grid = Image.fromarray(sample_grid(source, images=images))
    with _naming(output):
        (output / f"{name}.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        write_manifest(found, output / f"{name}.manifest")
        grid.save(output / f"{name}.png")
    print_figures(figures)
    return figures


@contextlib.contextmanager
def _naming(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror}); name another folder") from error


def print_figures(figures: dict[str, Any]) -> None:
    """Prints the figures in the order of a reader's questions: what, how much, how long, how large, what is wrong."""
    print(f"{figures['source']}: {figures['records']} records, {figures['with_picture']} with a picture")
    print(f"  captions {figures['captions']}, questions {figures['questions']}, repeated {figures['repeated']}")
    print(f"  words per caption: mean {figures['caption_words']['mean']}, {figures['caption_words']['quantiles']}")
    if "vocabulary" in figures:
        vocabulary = figures["vocabulary"]
        print(
            f"  tokens per caption: mean {figures['caption_tokens']['mean']}, {figures['caption_tokens']['quantiles']}"
        )
        print(f"  vocabulary used: {vocabulary['used']} of {vocabulary['size']}")
    print(f"  width {figures['image_width']}\n  height {figures['image_height']}\n  files {figures['image_forms']}")
    print(f"  sha256 {figures['sha256']}")
    for reason, entry in figures["bad"].items():
        print(f"  BAD {reason}: {entry['count']}, such as {', '.join(entry['ids'][:3])}")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 if an item is bad or the data cannot be opened."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.data_check",
        description="Checks the training and validation data of --config=FILE (and --config.… as main has them).",
        epilog="example: python -m frozen_jax.tools.data_check --config=configs/quickstart.py",
        allow_abbrev=False,
    )
    parser.add_argument("--source", help="one source in place of a config, such as folder:/data/stamps")
    parser.add_argument("--size", type=int, default=0, help="pixels; by default the config's, or 64")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; by default the language model's")
    parser.add_argument("--output", type=Path, default=Path("data_check"), help="folder for what is written")
    given, rest = parser.parse_known_args(arguments)
    with exit_in_one_line():
        sources, images, clean, folder = {"source": given.source}, ImageOptions(64), None, given.tokenizer
        if rest:
            config = read_config(rest)
            sources = {"train": config.data.train, "validation": config.data.validation}
            images, clean = config.data.image, config.data.clean
            if not folder and Path(resolve_path(config.lm.path)).joinpath("tokenizer.json").is_file():
                folder = Path(resolve_path(config.lm.path))
        if not any(sources.values()):
            raise UserError("nothing to check: give --config=FILE or --source=KIND:PATH")
        tokenizer = Tokenizer.from_directory(folder) if folder else None
        results = [
            check(
                line,
                name=name,
                images=replace(images, size=given.size or images.size),
                clean=clean,
                output=given.output,
                encode=tokenizer.encode if tokenizer else None,
                vocab_size=tokenizer.vocab_size if tokenizer else 0,
            )
            for name, line in sources.items()
            if line
        ]
    if any(figures["bad"] for figures in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
