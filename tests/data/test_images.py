"""Pictures of every kind become the same array everywhere, and every kind of bad file is one clear line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frozen_jax.data.images import ImageError, ImageOptions, load_image
from frozen_jax.errors import UserError

RNG = np.random.default_rng(0)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width, height):
    """A picture without fine detail: resizing it by any sound method gives nearly the same."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([255 * x, 255 * y, 255 * (1 - x * y)], axis=-1).round().astype(np.uint8)


def options(size=16, **more):
    return ImageOptions(size, **more)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_allowed_format_opens_whatever_its_name(kind, tmp_path):
    path = tmp_path / "picture.xyz"
    path.write_bytes(encoded(Image.fromarray(smooth(64, 64)), kind))
    loaded = load_image(path, options=options())
    assert loaded.shape == (16, 16, 3) and loaded.dtype == np.uint8
    assert np.abs(loaded.astype(int) - smooth(16, 16).astype(int)).mean() < 10
    np.testing.assert_array_equal(loaded, load_image(path.read_bytes(), options=options()))


def test_formats_outside_the_list_are_refused():
    with pytest.raises(ImageError, match="allowed format"):
        load_image(encoded(Image.fromarray(smooth(8, 8)), "PPM"), options=options())


def test_an_exact_size_is_not_touched():
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(pixels, options=options()), pixels)
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(pixels)), options=options()), pixels)


def test_padding_is_black_centred_and_keeps_the_shape():
    loaded = load_image(np.full((20, 40, 3), 200, np.uint8), options=options())
    assert (loaded[4:12] == 200).all() and not loaded[:4].any() and not loaded[12:].any()
    loaded = load_image(np.full((40, 10, 3), 200, np.uint8), options=options())
    assert (loaded[:, 6:10] == 200).all() and not loaded[:, :6].any() and not loaded[:, 10:].any()


def test_crop_takes_the_centre_and_pads_nothing():
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 200
    loaded = load_image(pixels, options=options(fit="crop"))
    assert (loaded[:, 1:-1] == 200).all()
    assert (loaded[:, (0, -1)] == 175).all(), "the antialiasing of the edge sees one black neighbour in eight"


@pytest.mark.parametrize("side", [16, 21, 31, 32, 47, 64, 200, 333])
def test_resizing_keeps_means_and_does_not_move_the_picture(side):
    loaded = load_image(smooth(side, side), options=options()).astype(int)
    assert np.abs(loaded - smooth(16, 16).astype(int)).max() <= 3
    mirrored = load_image(smooth(side, side)[:, ::-1].copy(), options=options()).astype(int)
    assert np.abs(mirrored[:, ::-1] - loaded).max() <= 2, "left and right are treated alike"


@pytest.mark.parametrize(("width", "height"), [(640, 480), (641, 479), (333, 501)])
def test_jpeg_scales_agree_with_full_decoding(width, height):
    jpeg = encoded(Image.fromarray(smooth(width, height)), "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(jpeg)))
    for size in (60, 100, 224, 300, 640):
        scaled = load_image(jpeg, options=options(size)).astype(int)
        assert np.abs(scaled - load_image(full, options=options(size)).astype(int)).mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = smooth(64, 32)
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(stored, "JPEG", quality=95, exif=exif), options=options())
    assert np.abs(loaded.astype(int) - load_image(upright, options=options()).astype(int)).mean() < 4


def test_every_mode_becomes_rgb():
    base = Image.fromarray(smooth(16, 16))
    grey = np.asarray(base.convert("L"))
    expected = np.repeat(grey[..., None], 3, 2)
    for image in (base.convert("L"), Image.fromarray(grey.astype(np.uint16) * 257)):
        np.testing.assert_array_equal(load_image(encoded(image), options=options()), expected)
    assert np.abs(load_image(encoded(base.convert("P")), options=options()).astype(int) - smooth(16, 16)).mean() < 20
    assert set(np.unique(load_image(encoded(base.convert("1")), options=options()))) == {0, 255}
    cmyk = load_image(encoded(base.convert("CMYK"), "JPEG", quality=95), options=options())
    assert np.abs(cmyk.astype(int) - smooth(16, 16)).mean() < 12
    with pytest.raises(ImageError, match="floating-point") as caught:
        load_image(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), options=options())
    assert caught.value.reason == "unsupported pixels"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(mode):
    image = Image.new("RGBA", (16, 16), (10, 10, 10, 0))
    image.paste((200, 200, 200, 255), (0, 0, 16, 8))
    data = encoded(image.convert(mode) if mode != "P" else image.quantize(8))
    loaded = load_image(data, options=options(background=(255, 0, 0) if mode != "LA" else (9, 9, 9)))
    assert np.abs(loaded[:8].astype(int) - 200).max() <= 2
    assert (loaded[8:] == np.array((255, 0, 0) if mode != "LA" else (9, 9, 9))).all()


def test_only_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (load_image(data, options=options()) == np.array((255, 0, 0))).all()


def test_one_pixel_and_one_line():
    assert (load_image(np.full((1, 1, 3), 7, np.uint8), options=options()) == 7).all()
    line = load_image(np.full((1, 5000, 3), 7, np.uint8), options=options())
    assert (line[7] == 7).all() and line.astype(bool).sum() == 16 * 3
    assert load_image(np.full((1, 5000, 3), 7, np.uint8), options=options(fit="crop")).shape == (16, 16, 3)


def test_a_window_is_a_part_of_the_picture():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, 32:] = 200
    for source in (pixels, encoded(Image.fromarray(pixels)), encoded(Image.fromarray(pixels), "JPEG", quality=95)):
        loaded = load_image(source, options=options(), window=(0.5, 0.0, 1.0, 0.5))
        assert np.abs(loaded[1:-1, 1:-1].astype(int) - 200).max() <= 8
        assert load_image(source, options=options(), window=(0.0, 0.5, 0.5, 1.0)).mean() < 3


def huge_png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(20000, 20000), (9000, 9000), (9600, 9600), (10**6, 10**6)])
def test_too_many_pixels_are_refused_before_decoding(width, height):
    with pytest.raises(ImageError, match="pixels") as caught:
        load_image(huge_png(width, height), options=options())
    assert caught.value.reason == "too many pixels"
    assert str(width * height) in str(caught.value) or f"{width} x {height}" in str(caught.value)


def test_bad_files(tmp_path):
    jpeg = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    png = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    cases = {
        "text.png": (b"this is a text file, not a picture\n", "not a picture"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged"),
        "cut.png": (png[: len(png) // 2], "damaged"),
        "header.png": (png[:20], "damaged"),
        "zero.png": (b"", "empty"),
    }
    for name, (data, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        for source in (path, data):
            with pytest.raises(ImageError) as caught:
                load_image(source, options=options())
            assert caught.value.reason == reason, (name, str(caught.value))
            assert name in str(caught.value) or source is data
            assert "\n" not in str(caught.value)
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="cannot be read") as caught:
            load_image(path, options=options())
        assert caught.value.reason == "missing"


def test_bad_pictures_in_memory(tmp_path):
    """Pillow decodes when it is asked to, wherever that is; and not every number of channels is a colour."""
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    closed = Image.open(io.BytesIO(whole))
    closed.close()
    for damaged in (Image.open(io.BytesIO(whole[: len(whole) // 2])), closed):
        with pytest.raises(ImageError, match="cannot be decoded") as caught:
            load_image(damaged, options=options())
        assert caught.value.reason == "damaged"
    for shape in ((3, 40, 40), (8, 8, 5), (8, 8, 2)):
        with pytest.raises(ImageError, match=r"must be uint8\[height, width"):
            load_image(np.zeros(shape, np.uint8), options=options())


def test_a_device_is_no_picture():
    with pytest.raises(ImageError, match="is a pipe or a device") as caught:
        load_image(Path("/dev/null"), options=options())
    assert caught.value.reason == "not a picture"


def test_bad_options():
    for bad in (
        {"size": 0},
        {"size": -5},
        {"size": 10**4},
        {"size": 8, "fit": "stretch"},
        {"size": 8, "max_pixels": 10**9},
    ):
        with pytest.raises(UserError, match="images:"):
            ImageOptions(**bad)
    with pytest.raises(ImageError, match="uint8"):
        load_image(np.zeros((4, 4, 3), np.float32), options=options())
