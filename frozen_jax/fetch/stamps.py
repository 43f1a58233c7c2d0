"""Tux Paint's stamps: photographs and drawings of things, each with a caption that its makers wrote for children.

The rules: a picture is a PNG with a text file of the same name, or an SVG where there is no such PNG; its caption is
the first, English line of the text; its category is the top folder. Letters, digits, coins and other `symbols` are left
out: they are read, not seen. Of pictures that are equal in every pixel the first by name stays.
"""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

from PIL import Image

from frozen_jax.errors import UserError
from frozen_jax.fetch.archives import read_members
from frozen_jax.fetch.split import Entry

ROOT = "usr/share/tuxpaint/stamps/"
LEFT_OUT = "symbols"

QUESTION = "What kind of thing is this?"

SIDE = 288
"""Largest side of a prepared picture, in pixels: room for random crops at 224."""


def write_stamps(package: Path, folder: Path) -> list[Entry]:
    """Writes the pictures, each on a white square, and returns their captions, sorted by name.

    Args:
        package: the `.deb`.
        folder: gets `pictures/CATEGORY/…/NAME.png`.

    Raises:
        UserError: a damaged package, or drawings in SVG and nothing to render them.
    """
    files = {
        name.removeprefix(ROOT): content
        for name, content in read_members(
            package,
            lambda name: (
                name.startswith(ROOT)
                and not name.startswith(f"{ROOT}{LEFT_OUT}/")
                and name.endswith((".png", ".svg", ".txt"))
            ),
        )
    }
    entries: list[Entry] = []
    seen: set[bytes] = set()
    for name in sorted(files):
        text = files.get(str(PurePosixPath(name).with_suffix(".txt")))
        vector = name.endswith(".svg")
        if name.endswith(".txt") or text is None or (vector and f"{name[:-4]}.png" in files):
            continue
        caption = text.partition(b"\n")[0].decode("utf-8").strip()
        try:
            picture = square(render_svg(files[name]) if vector else files[name])
        except UserError as error:
            raise UserError(f"fetch: the stamp {name}: {error}") from error
        if not caption or picture.tobytes() in seen:
            continue
        seen.add(picture.tobytes())
        path = folder / "pictures" / f"{name[:-4]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        entries.append(Entry(str(path.relative_to(folder).as_posix()), caption, (name.partition("/")[0],)))
    return entries


def render_svg(content: bytes) -> bytes:
    """Returns a drawing as a PNG of twice the side that is kept; text is left out, so that all machines draw the same.

    Raises:
        UserError: the renderer is not installed, or the drawing is damaged.
    """
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise UserError("it is an SVG, which resvg-py renders: pip install 'frozen_jax[fetch]'") from error
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=content.decode("utf-8"), width=2 * SIDE, dpi=96.0, skip_system_fonts=True
        )
    except ValueError as error:
        raise UserError(f"it cannot be rendered ({error})") from error
    return bytes(drawn)


def square(content: bytes) -> Image.Image:
    """Returns a PNG, transparent or not, in the middle of a white square of at most `SIDE` pixels.

    A cut-out on white has no edge that it does not have itself; the black pad of what is not square would be one.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            upper = opened.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"it is no whole PNG ({error})") from error
    across = max(upper.size)
    canvas = Image.new("RGBA", (across, across), (255, 255, 255, 255))
    canvas.alpha_composite(upper, ((across - upper.width) // 2, (across - upper.height) // 2))
    picture = canvas.convert("RGB")
    return picture if across <= SIDE else picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
