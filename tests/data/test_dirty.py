"""A thousand corrupted items among good ones: each is found, counted once by its reason, and none stops the run."""

import gc
import io
import json
import os
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frozen_jax.data.cleaning import CleanedSource, CleanOptions
from frozen_jax.data.dirty import LISTED, BadItems, replacement, report_bad_items
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.sources import open_source
from frozen_jax.data.text import RowLayout
from frozen_jax.errors import UserError


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8))
JPEG, PNG = encoded(PICTURE, "JPEG"), encoded(PICTURE, "PNG")
FRAMES = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]


def bomb(number):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20000 + number, 20000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


BAD = {  # reason: what makes item n of it: (picture or None to leave it out, caption's bytes)
    "missing": lambda n: (None, b"a picture"),
    "empty": lambda n: (b"", b"a picture"),
    "not a picture": lambda n: ((b"text", b"<svg>", b"\x89PNG bad", b"%PDF-1.4")[n % 4] + b"%d" % n * 9, b"a picture"),
    "damaged": lambda n: ((JPEG, PNG)[n % 2][: 400 + 7 * n], b"a picture"),
    "too many pixels": lambda n: (bomb(n), b"a picture"),
    "unsupported pixels": lambda n: (encoded(Image.fromarray(np.zeros((4, 4 + n), "f4")), "TIFF"), b"a picture"),
    "not JSON": lambda n: (JPEG, None),
    "not UTF-8": lambda n: (JPEG, b"caf\xe9 %d" % n),
    "empty caption": lambda n: (JPEG, (b"", b" \\t", b"&nbsp; ", "\u200b".encode())[n % 4]),
    "huge caption": lambda n: (JPEG, b"word " * (500 + n)),
}
GOOD = [
    JPEG,
    PNG,
    encoded(PICTURE.convert("CMYK"), "JPEG"),
    encoded(Image.fromarray(RNG.integers(0, 65536, (20, 20), dtype=np.uint16)), "PNG"),
    encoded(PICTURE.convert("P"), "PNG"),
    encoded(PICTURE.convert("L"), "JPEG"),
    encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    encoded(PICTURE, "WEBP"),
]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """1,000 bad items, 100 of each reason, shuffled among 600 good ones of every unusual but usable kind."""
    folder = tmp_path_factory.mktemp("dirty")
    items = [(f"good{n}", GOOD[n % len(GOOD)], b"a good picture") for n in range(600)]
    for reason, make in BAD.items():
        items += [(f"{reason.replace(' ', '_')}{n}", *make(n)) for n in range(100)]
    with open(folder / "table.jsonl", "wb") as table:
        for place in np.random.default_rng(1).permutation(len(items)):
            name, picture, caption = items[place]
            if picture is not None:
                (folder / f"{name}.jpg").write_bytes(picture)
            if caption is None:
                table.write(b'{"image": "%s.jpg", "caption": \n' % name.encode())
            else:
                table.write(b'{"image": "%s.jpg", "caption": "%s"}\n' % (name.encode(), caption))
    return folder / "table.jsonl"


def pipeline(table, **options):
    return Pipeline(
        CleanedSource(open_source(f"jsonl:{table}"), CleanOptions()),
        text=lambda record, rng: record.captions[0],
        encode=lambda text: [7] * len(text.split()),
        layout=RowLayout(8, 1, None, 1),
        options=PipelineOptions(**{"batch_size": 100, "images": ImageOptions(16), **options}),
    )


def test_a_thousand_corrupted_items(dirty):
    run = pipeline(dirty, on_bad="replace")
    batches, position = [], Position(0, 0)
    for _ in range(16):
        batches.append(run.batch(position))
        position = run.next_position(position)
    assert position == Position(1, 0)
    report = run.bad.report()
    assert {reason: entry["count"] for reason, entry in report.items()} == dict.fromkeys(BAD, 100)
    names = {index: json.loads(line)["image"] for index, line in enumerate(dirty.read_text("latin-1").splitlines())
             if line.endswith("}")}  # fmt: skip
    for reason, entry in report.items():
        for item in entry["ids"]:
            name = names.get(int(item.split(":")[1]), "not_JSON")
            assert name.startswith(reason.replace(" ", "_")), (reason, name)
    used = Counter(names[int(i)][:4] for batch in batches for i in batch.sample_ids)
    assert used == {"good": 1600}
    again = pipeline(dirty, on_bad="replace", cache_bytes=0)
    position = Position(0, 0).advance(900, size=1600)
    for one, other in zip(again.batch(position)[:4], batches[9][:4], strict=True):
        np.testing.assert_array_equal(one, other)
    for _ in range(3):  # nothing is counted twice
        run.batch(position)
    assert run.bad.count == 1000


def test_the_policy_raise_names_the_first(dirty):
    with pytest.raises(UserError, match=r"(table\.jsonl|record)"):
        pipeline(dirty).batch(Position(0, 0))


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_over_three_epochs(dirty):
    run = pipeline(dirty, on_bad="replace", cache_bytes=0, images=ImageOptions(64))
    after = []
    for epoch in range(3):
        for step in range(6):
            run.batch(Position(epoch, 100 * step))
        after.append(resident_bytes())
    assert after[2] - after[1] < 6_000_000, after  # one batch is 1.2 MB: one leaked per step would be 7


def test_a_shard_that_is_cut_and_one_that_vanishes(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(20):
                for suffix, data in ((".jpg", JPEG), (".txt", b"a picture")):
                    info = tarfile.TarInfo(f"{shard}-{number}{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    source = open_source(f"tar:{tmp_path}")
    (tmp_path / "2.tar").unlink()
    run = Pipeline(
        source,
        text=lambda record, rng: record.captions[0] if record.captions else None,
        encode=lambda text: [7],
        layout=RowLayout(4, 1, None, 1),
        options=PipelineOptions(batch_size=len(source), images=ImageOptions(8), on_bad="replace"),
    )
    batch = run.batch(Position(0, 0))
    assert {source.ids()[i].split("/")[0] for i in batch.sample_ids} == {"0.tar", "1.tar"}
    report = run.bad.report()
    assert report["missing"]["count"] == 20 and report["cut shard"]["count"] == 1
    assert sum(entry["count"] for entry in report.values()) <= 22


def test_the_list_is_bounded():
    bad = BadItems()
    for sample in range(LISTED + 500):
        assert bad.add(sample, item_id=f"{sample:05}", reason="damaged")
    assert not bad.add(3, item_id="00003", reason="damaged")
    entry = bad.report()["damaged"]
    assert entry["count"] == LISTED + 500 == bad.count and len(entry["ids"]) == LISTED and 3 in bad


def test_the_account_outlives_the_process_and_joins_hosts(tmp_path):
    paths = [tmp_path / "bad/train.0.jsonl", tmp_path / "bad/train.1.jsonl"]
    assert BadItems(paths[0]).count == 0 and not paths[0].parent.exists()
    for path, samples in zip(paths, ([1, 2], [2, 3]), strict=True):
        account = BadItems(path)
        for sample in samples:
            account.add(sample, item_id=f"item {sample}", reason="damaged" if sample > 1 else "empty")
    with paths[0].open("a") as file:
        file.write('\n{"sample": 9, "id": "it')  # killed while writing
    again = BadItems(paths[0])
    assert again.count == 2 and 2 in again and 9 not in again
    again.add(4, item_id="item 4", reason="empty")
    assert BadItems(paths[0]).report() == {
        "damaged": {"count": 1, "ids": ["item 2"]},
        "empty": {"count": 2, "ids": ["item 1", "item 4"]},
    }
    joint = report_bad_items(paths)
    assert joint["damaged"] == {"count": 2, "ids": ["item 2", "item 3"]} and joint["empty"]["count"] == 2
    paths[0].write_bytes(b"\xff")
    with pytest.raises(UserError, match="cannot be read"):
        BadItems(paths[0])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be listed"):
        BadItems(tmp_path / "file/train.jsonl").add(1, item_id="a", reason="empty")


def test_replacements_are_pure_and_spread():
    chosen = [replacement(5, seed=0, epoch=0, attempt=a, size=1000) for a in range(20)]
    assert chosen == [replacement(5, seed=0, epoch=0, attempt=a, size=1000) for a in range(20)]
    assert (
        len(set(chosen)) > 15 and len({replacement(5, seed=0, epoch=e, attempt=0, size=1000) for e in range(20)}) > 15
    )
    with pytest.raises(UserError, match="data_check"):
        replacement(5, seed=0, epoch=0, attempt=32, size=1000)
