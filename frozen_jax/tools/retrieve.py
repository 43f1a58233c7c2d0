"""`python -m frozen_jax.tools.retrieve index|query …`: finds pictures by text, by picture, or by both.

`index` encodes the pictures of a folder into one file; called again, it encodes what is new or changed. `query` prints
the pictures that fit a text, a picture, or, with a model trained for retrieval, several of both: each finds pictures
by itself, and their cosines are added; a text behind a picture is read together with it.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from frozen_jax.data.folders import PICTURES
from frozen_jax.data.images import ImageError, ImageOptions, load_image
from frozen_jax.data_settings import DataSettings
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.export.layout import is_export
from frozen_jax.gallery import Searcher, fingerprint_model, index_folder, read_gallery
from frozen_jax.nearest import APPROXIMATE_FROM, ApproximateSearch, has_faiss, measure_recall
from frozen_jax.released import find_model
from frozen_jax.restore import load, read_settings
from frozen_jax.spelling import print_lines
from frozen_jax.workdir import check_out_file, write_bytes_atomic

TILE, MARGIN, LINE = 128, 8, 14
"""Of a sheet of pictures, in pixels."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Of sheets, by the end of their name."""

EXAMPLES = """examples:
  python -m frozen_jax.tools.retrieve index pictures --workdir=runs/ret --out=pictures.index
  python -m frozen_jax.tools.retrieve query pictures.index "a red circle" --workdir=runs/ret --k=8 --sheet=found.png
  python -m frozen_jax.tools.retrieve query pictures.index "a circle" "a large one" --workdir=runs/ret
  python -m frozen_jax.tools.retrieve query pictures.index PICTURE.png "but blue" --workdir=runs/ret
"""

ASKED = 256
"""Pictures of a large gallery that the approximate search is measured by."""


def index(workdir: Path, folder: Path, out: Path) -> list[str]:
    """Writes or updates an index; returns what to print.

    Raises:
        UserError: as `gallery.index_folder`.
    """
    model = load(workdir)
    changes = index_folder(model, folder, out)
    gallery = read_gallery(out, model=fingerprint_model(model))
    lines = [f"warning: left out: {message}" for message in changes.refused.values()]
    lines.append(
        f"{out}: {len(gallery.ids):,} pictures; {changes.added:,} new, {changes.changed:,} changed, "
        f"{changes.kept:,} as they were, {changes.removed:,} gone, {len(changes.refused):,} left out"
    )
    searcher = Searcher(model, gallery)
    if isinstance(searcher.nearest, ApproximateSearch):
        asked = np.random.default_rng(0).choice(len(gallery.ids), ASKED, replace=False)
        vectors = searcher.vectors
        recall = measure_recall(vectors, searcher.nearest, vectors[asked])
        lines.append(f"approximate search finds {recall:.3f} of the exact ten nearest of {ASKED} of its pictures")
    elif len(gallery.ids) >= APPROXIMATE_FROM and not has_faiss():
        lines.append("searched exactly; frozen_jax[retrieve] brings an approximate search for a gallery of this size")
    return lines


def query(workdir: Path, index: Path, parts: Sequence[str], *, k: int) -> list[tuple[Path, float]]:
    """Returns the pictures found with their scores, the best first.

    Args:
        workdir: of the run that the index was made with, or what else `load` takes.
        index: the file.
        parts: texts, which are worded as captions in training, and names of picture files. An export does not keep
            the wording: its texts are asked as they are given.
        k: how many.

    Raises:
        UserError: an empty text, or as `gallery.Searcher.find` and `gallery.read_gallery`.
    """
    empty = [part for part in parts if not part.strip()]
    if empty:
        raise UserError(f"a text is {empty[0]!r}; say what to find, for example 'a red circle'")
    settings = DataSettings() if is_export(find_model(workdir)) else read_settings(workdir).data
    model = load(workdir)
    gallery = read_gallery(index, model=fingerprint_model(model))
    asked = [
        Path(part) if part.lower().endswith(PICTURES) else settings.caption_format.format(caption=part)
        for part in parts
    ]
    found = Searcher(model, gallery).find(asked, k=k, before=settings.caption_prompt)
    return [(Path(gallery.folder) / name, score) for name, score in found]


def draw_sheet(path: Path, title: str, found: Sequence[tuple[Path, float]]) -> None:
    """Draws pictures in a row, the best first, with their scores below and the question above.

    Raises:
        UserError: a picture cannot be opened any more, or the file is there already or cannot be written.
    """
    width = MARGIN + len(found) * (TILE + MARGIN)
    image = PIL.Image.new("RGB", (width, TILE + 4 * MARGIN + 2 * LINE), "white")
    draw = PIL.ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, fill="black")
    for place, (name, score) in enumerate(found):
        left, top = MARGIN + place * (TILE + MARGIN), 2 * MARGIN + LINE
        try:
            pixels = load_image(name, options=ImageOptions(size=TILE))
        except ImageError as error:
            raise UserError(
                f"--sheet={path}: is not drawn, for {name} was changed since it was indexed ({error.reason}); index "
                "the folder again"
            ) from error
        image.paste(PIL.Image.fromarray(pixels), (left, top))
        draw.text((left, top + TILE + MARGIN), f"{score:.3f}", fill="black")
    encoded = io.BytesIO()
    try:
        image.save(encoded, format=FORMATS[path.suffix.lower()])
    except (OSError, ValueError) as error:  # JPEG and WebP have a largest width
        raise UserError(f"--sheet={path}: cannot be drawn ({error}); name a PNG file, or take a smaller --k") from error
    write_bytes_atomic(path, encoded.getvalue(), overwrite=False)


def check_sheet(path: Path) -> None:
    """Refuses what cannot become a sheet before the question is asked.

    Raises:
        UserError: no name of a picture, a file that is there, or a folder that is missing or cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"--sheet={path}: is a picture, and its name must end in {', '.join(FORMATS)}; name such a file"
        )
    if os.path.lexists(path):
        raise UserError(f"--sheet={path}: is there already; name another file or remove it")
    check_out_file(path, option="--sheet")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.retrieve",
        description="Finds pictures by text, by picture, or by both.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("index", help="encode a folder's pictures into an index, or bring one up to date")
    making.add_argument("folder", type=Path, metavar="FOLDER")
    making.add_argument("--out", type=Path, required=True, help="the index file")
    asking = actions.add_parser("query", help="find pictures")
    asking.add_argument("index", type=Path, metavar="INDEX")
    asking.add_argument(
        "parts", nargs="+", metavar="TEXT|IMAGE", help="several are added; a text behind an image changes it"
    )
    asking.add_argument("--k", type=int, default=5, help="how many pictures")
    asking.add_argument("--sheet", type=Path, help="draw them into this new PNG, JPEG or WebP file")
    for action in (making, asking):
        action.add_argument("--workdir", type=Path, required=True, help="of a training run")
    given = parser.parse_args(arguments)
    with exit_in_one_line():
        if given.action == "index":
            print_lines(*index(given.workdir, given.folder, given.out))
            return
        if given.sheet is not None:
            check_sheet(given.sheet)
        found = query(given.workdir, given.index, given.parts, k=given.k)
        print_lines(*(f"{score:8.4f}  {name}" for name, score in found))
        if given.sheet is not None:
            draw_sheet(given.sheet, " + ".join(given.parts), found)


if __name__ == "__main__":
    main()
