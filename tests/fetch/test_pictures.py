"""Stamps and emoji from made-up packages: which pictures, which captions, on white; and the split."""

import io
import json

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import SbitLineMetrics, Strike, eblc_index_sub_table_1
from PIL import Image

from frozen_jax.data.records import Question
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.fetch import stamps
from frozen_jax.fetch.emoji import ANNOTATIONS, FONT, ORDER, read_annotations, read_groups, write_emoji
from frozen_jax.fetch.split import Entry, is_held_out, normalise_caption, write_splits
from frozen_jax.fetch.stamps import ROOT, SIDE, square, write_stamps
from tests.fetch.archives import make_deb

GOLDEN = ["thing 3", "thing 4", "thing 12", "thing 25", "thing 27", "thing 36"]


def png(size, colour, mode="RGBA"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_cut_out_stands_on_a_white_square_and_a_large_one_is_shrunk():
    pixels = np.asarray(square(png((10, 4), (200, 0, 0, 255))))
    assert pixels.shape == (10, 10, 3)
    assert (pixels[:3] == 255).all() and (pixels[3:7] == (200, 0, 0)).all() and (pixels[7:] == 255).all()
    assert (np.asarray(square(png((4, 4), (0, 0, 0, 0)))) == 255).all(), "transparent is white, not black"
    assert square(png((2 * SIDE, SIDE), (0, 0, 0, 255))).size == (SIDE, SIDE)
    with pytest.raises(UserError, match="no whole PNG"):
        square(png((40, 40), (1, 2, 3, 255))[:60])


def test_stamps_follow_their_rules(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "render_svg", lambda content: png((6, 6), (0, int(content), 0, 255)))
    files = {
        "animals/birds/owl.png": png((5, 5), (1, 0, 0, 255)),
        "animals/birds/owl.txt": "An “owl”. \nde.utf8=Eine Eule.\n".encode(),
        "animals/birds/owl_mirror.png": png((5, 5), (2, 0, 0, 255)),
        "animals/birds/owl.ogg": b"sound",
        "food/pie.svg": b"7",
        "food/pie.txt": b"A pie.",
        "animals/owl.svg": b"9",
        "animals/owl.png": png((5, 5), (3, 0, 0, 255)),
        "animals/owl.txt": b"An owl.\n",
        "people/same.png": png((5, 5), (1, 0, 0, 255)),
        "people/same.txt": b"The same pixels.",
        "symbols/a.png": png((5, 5), (4, 0, 0, 255)),
        "symbols/a.txt": b"The letter a.",
        "seasonal/gift.txt": b"A caption without a picture.",
    }
    package = tmp_path / "x.deb"
    package.write_bytes(make_deb({f"./{ROOT}{name}": content for name, content in files.items()}))
    entries = write_stamps(package, tmp_path / "out")
    assert entries == [
        Entry("pictures/animals/birds/owl.png", "An “owl”.", ("animals",)),
        Entry("pictures/animals/owl.png", "An owl.", ("animals",)),
        Entry("pictures/food/pie.png", "A pie.", ("food",)),
    ]
    assert Image.open(tmp_path / "out" / entries[1].image).getpixel((0, 0)) == (3, 0, 0)
    assert Image.open(tmp_path / "out" / entries[2].image).getpixel((0, 0)) == (0, 7, 0)


def test_a_drawing_is_rendered_where_the_renderer_is_installed():
    pytest.importorskip("resvg_py")
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="20pt" height="10pt">'
    drawing += b'<rect width="26" height="13" fill="red"/></svg>'
    pixels = np.asarray(square(stamps.render_svg(drawing)))
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pixels[SIDE // 2, SIDE // 2] == (255, 0, 0)).all() and (pixels[4, SIDE // 2] == 255).all()
    with pytest.raises(UserError, match="cannot be rendered"):
        stamps.render_svg(b"<svg")


def make_font():
    """A font with a bitmap for 🍎 and one for 🍎 joined to 🐦 by a ligature; 🐦 alone has none."""
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder([".notdef", "apple", "both", "bird", "zwj"])
    builder.setupCharacterMap({0x1F34E: "apple", 0x1F426: "bird", 0x200D: "zwj"})
    builder.addOpenTypeFeatures("feature ccmp { sub apple zwj bird by both; } ccmp;")
    font = builder.font
    font["CBDT"], font["CBLC"] = bitmaps, locations = newTable("CBDT"), newTable("CBLC")
    bitmaps.version = locations.version = 3.0
    bitmaps.strikeData = [{}]
    for name, colour in (("apple", (9, 0, 0, 255)), ("both", (0, 9, 0, 0))):
        bitmaps.strikeData[0][name] = glyph = cbdt_bitmap_format_17(b"", font)
        glyph.metrics = SmallGlyphMetrics()
        for field in ("height", "width", "BearingX", "BearingY", "Advance"):
            setattr(glyph.metrics, field, 4)
        glyph.imageData = png((4, 4), colour)
    strike = Strike()
    for line in ("hori", "vert"):
        metrics = SbitLineMetrics()
        for field in [
            "ascender",
            "descender",
            "widthMax",
            "caretSlopeNumerator",
            "caretSlopeDenominator",
            "caretOffset",
            "minOriginSB",
            "minAdvanceSB",
            "maxBeforeBL",
            "minAfterBL",
            "pad1",
            "pad2",
        ]:
            setattr(metrics, field, 0)
        setattr(strike.bitmapSizeTable, line, metrics)
    for field, value in {"colorRef": 0, "ppemX": 4, "ppemY": 4, "bitDepth": 32, "flags": 1}.items():
        setattr(strike.bitmapSizeTable, field, value)
    places = eblc_index_sub_table_1(b"", font)
    places.names, places.indexFormat, places.imageFormat = ["apple", "both"], 1, 17
    strike.indexSubTables, locations.strikes = [places], [strike]
    buffer = io.BytesIO()
    font.save(buffer)
    return buffer.getvalue()


EMOJI_TEST = """# group: Food & Drink
1F34E                 ; fully-qualified     # 🍎 E0.6 red apple
1F34E 200D 1F426 FE0F ; fully-qualified     # both
1F34E 200D 1F426      ; minimally-qualified # both
1F44B 1F3FB           ; fully-qualified     # a skin tone
1F426                 ; fully-qualified     # without a bitmap
# group: Flags
1F3C1                 ; fully-qualified     # chequered flag
# group: Component
1F3FB                 ; component           # light skin tone
"""

XML = """<?xml version="1.0"?><!DOCTYPE ldml SYSTEM "../../nowhere.dtd"><ldml><annotations>
<annotation cp="🍎">apple | fruit | red apple</annotation><annotation cp="🍎" type="tts">red apple</annotation>
<annotation cp="🐦">bird</annotation><annotation cp="🐦" type="tts">bird</annotation>
<annotation cp="x">without a name</annotation>
</annotations></ldml>"""


def test_emoji_are_joined_from_font_names_and_groups(tmp_path):
    derived = '<ldml><annotation cp="🍎\u200d🐦" type="tts">apple &amp; bird</annotation></ldml>'
    contents = {
        "font": {FONT: make_font()},
        "cldr": dict(zip(ANNOTATIONS, (XML.encode(), derived.encode()), strict=True)),
        "unicode": {ORDER: EMOJI_TEST.encode()},
    }
    packages = []
    for name, files in contents.items():
        packages.append(tmp_path / f"{name}.deb")
        packages[-1].write_bytes(make_deb({f"./{key}": value for key, value in files.items()}))
    entries = write_emoji(*packages, tmp_path / "out")
    assert entries == [
        Entry("pictures/1f34e.png", "A red apple.", ("Food & Drink", "apple", "fruit")),
        Entry("pictures/1f34e-200d-1f426.png", "An apple & bird.", ("Food & Drink",)),
    ]
    shown = [np.asarray(Image.open(tmp_path / "out" / entry.image))[0, 0].tolist() for entry in entries]
    assert shown == [[9, 0, 0], [255, 255, 255]], "transparent is white"


def test_flags_skin_tones_and_components_are_left_out():
    assert read_groups(EMOJI_TEST) == dict.fromkeys(("🍎", "🍎\u200d🐦", "🐦"), "Food & Drink")


def test_entities_are_refused():
    for declared in ('<!ENTITY a "b">', '<!ENTITY a SYSTEM "file:///etc/passwd">'):
        with pytest.raises(UserError, match="declares the entity 'a'"):
            read_annotations(f"<!DOCTYPE ldml [{declared}]><ldml>&a;</ldml>".encode())
    with pytest.raises(UserError, match="not well-formed"):
        read_annotations(b"<ldml>")


def test_the_split_is_of_captions_and_is_fixed(tmp_path):
    assert normalise_caption(" A  Cafe\u0301 cat. ") == "a caf\u00e9 cat"
    names = [f"thing {number}" for number in range(400)]
    assert [name for name in names[:40] if is_held_out(name)] == GOLDEN, "the rule must never change"
    assert 30 <= sum(map(is_held_out, names)) <= 70
    assert all(is_held_out(name) == is_held_out(f"{name.upper()}.") for name in names)
    entries = [Entry(f"{place}.png", name, ("kind", "tag")) for place, name in enumerate(names)]
    assert write_splits(tmp_path, entries, question="What?") == {
        "train": 400 - sum(map(is_held_out, names)),
        "heldout": sum(map(is_held_out, names)),
    }
    source = open_source(f"jsonl:{tmp_path / 'heldout.jsonl'}")
    first = names.index(GOLDEN[0])
    assert source.record(0)[1:3] == (tmp_path / f"{first}.png", (names[first],)) and source.record(0).tags == (
        "kind",
        "tag",
    )
    assert source.record(0).questions == (Question("What?", ("kind",)),)
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["caption"] == names[0]
