"""Batches are pure functions of the position: any host count, any start, blind, replaced, prefetched."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from frozen_jax.batch import PAD, SLOT, Batch, validate
from frozen_jax.data.augment import AugmentOptions
from frozen_jax.data.fake import FakeSource
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.prefetching import prefetch
from frozen_jax.data.records import MemorySource, Record, Subset, select, split_holdout
from frozen_jax.data.text import RowLayout, Text
from frozen_jax.errors import UserError

LAYOUT = RowLayout(max_tokens=16, prefix_length=2, bos_id=1, eos_id=2)


def encode(text):
    return [3 + ord(letter) % 60 for letter in text]


def word(record, rng):
    return record.captions[0][: rng.integers(4, 10)]


def make(source=None, *, text=word, layout=LAYOUT, **options):
    options = {"batch_size": 8, "images": ImageOptions(12), **options}
    return Pipeline(
        FakeSource(20) if source is None else source,
        text=text,
        encode=encode,
        layout=layout,
        options=PipelineOptions(**options),
    )


def join(parts):
    """The global batch of several hosts' rows."""
    return Batch(*map(np.concatenate, zip(*(part[:4] for part in parts), strict=True)))


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_is_valid():
    batch = make().batch(Position(0, 0))
    validate(batch, prefix_length=2, vocab_size=64)
    assert batch.images.shape == (8, 1, 12, 12, 3) and batch.images.any(axis=(1, 2, 3, 4)).all()
    assert (batch.tokens[:, :3] == np.array([1, SLOT, SLOT])).all() and (batch.tokens == PAD).any()


def test_every_sample_once_per_epoch_and_epochs_differ():
    pipeline, position, ids = make(), Position(0, 0), []
    for _ in range(5):
        ids += pipeline.batch(position).sample_ids.tolist()
        position = pipeline.next_position(position)
    assert position == Position(2, 0)
    assert sorted(ids[:20]) == sorted(ids[20:]) == list(range(20)) and ids[:20] != ids[20:]


def test_resuming_anywhere_gives_the_same_batches():
    options = {"augment": AugmentOptions(shift=0.2, flip=True, brightness=0.2, zoom=0.7)}
    stream = make(**options).iterate()
    seen = [next(stream) for _ in range(6)]
    stream.close()
    for step in (0, 3, 4):
        again = make(**options).iterate(seen[step][0])
        position, batch = next(again)
        again.close()
        assert position == seen[step + 1][0] if step < 5 else True
        assert equal(batch, seen[step + 1][1])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_same_global_batch_on_any_number_of_hosts(hosts):
    options = {"augment": AugmentOptions(shift=0.2, flip=True, contrast=0.2)}
    for position in (Position(0, 0), Position(0, 16), Position(3, 5)):
        whole = make(**options).batch(position)
        parts = [make(process_index=i, process_count=hosts, **options).batch(position) for i in range(hosts)]
        assert equal(join(parts), whole), "rows differ between one host and several"
        assert whole.sample_ids.tolist() == make(**options).batch_samples(position)[0].tolist()


def test_text_and_augmentation_change_with_the_epoch():
    pipeline = make(FakeSource(8), augment=AugmentOptions(brightness=0.3))
    first, second = pipeline.batch(Position(0, 0)), pipeline.batch(Position(1, 0))
    order = [np.argsort(batch.sample_ids) for batch in (first, second)]
    assert not np.array_equal(first.images[order[0]], second.images[order[1]])
    assert not np.array_equal(first.tokens[order[0]], second.tokens[order[1]])


@pytest.mark.parametrize("text", [Text("", label="on the left"), Text("yes", "sure?", (("where?", "on the left"),))])
def test_what_is_said_of_a_side_is_never_mirrored(text):
    plain, mirrored = (
        Pipeline(
            FakeSource(16),
            text=lambda record, rng: text,
            encode=lambda text: [7] * len(text.split()),
            layout=RowLayout(max_tokens=24, prefix_length=2, bos_id=1, eos_id=2),
            options=PipelineOptions(16, images=ImageOptions(8), augment=augment),
        ).batch(Position(0, 0))
        for augment in (None, AugmentOptions(flip=True))
    )
    np.testing.assert_array_equal(plain.images, mirrored.images)


def test_blind_is_the_same_run_in_the_dark():
    class Closed(FakeSource):
        def record(self, index):
            return super().record(index)._replace(image=b"not a picture")

    seeing, blind = make().batch(Position(0, 0)), make(Closed(20), blind=True).batch(Position(0, 0))
    assert not blind.images.any() and blind.images.shape == seeing.images.shape
    assert equal(blind[1:], seeing[1:])


def test_prompts_and_text_only():
    pipeline = make(text=lambda record, rng: Text("red", prompt="Q: A:"))
    tokens, mask = pipeline.batch(Position(0, 0))[1:3]
    assert (mask.sum(1) == 4).all() and (mask[:, :8] == 0).all() and (tokens[:, 11] == 2).all()
    batch = make(images=None).batch(Position(0, 0))
    validate(batch, prefix_length=2, vocab_size=64)
    assert batch.images.shape[:2] == (8, 0) and (batch.tokens[:, 1] >= 0).all()


def test_cached_and_uncached_pictures_are_the_same():
    for augmenting in (None, AugmentOptions(shift=0.2)):
        kept, read = make(augment=augmenting), make(cache_bytes=0, augment=augmenting)
        assert kept._loader.cached and not read._loader.cached
        for position in (Position(0, 0), Position(0, 8), Position(1, 0)):
            assert equal(kept.batch(position), read.batch(position))


def test_evaluation_is_one_pass_in_order():
    for hosts in (1, 2):
        parts = [
            list(make(process_index=i, process_count=hosts, augment=AugmentOptions(shift=0.3)).evaluation_batches())
            for i in range(hosts)
        ]
        batches = [join(rows) for rows in zip(*parts, strict=True)]
        assert [b[0].shape[0] for b in batches] == [8, 8, 8]
        ids = np.concatenate([b[3] for b in batches])
        assert ids.tolist() == [*range(20), -1, -1, -1, -1]
        assert not batches[-1][2][4:].any() and batches[-1][2][:4].any(axis=1).all()
        assert equal(batches[0][:1], [FakePixels()[:8, None]])


def FakePixels():
    from frozen_jax.data.loading import load_all

    return load_all(FakeSource(20), options=ImageOptions(12))


def spoiled(size=20, *, bad=(3, 7)):
    fake = FakeSource(size)
    rows = [fake.record(i) for i in range(size)]
    return MemorySource([r._replace(image=b"not a picture") if i in bad else r for i, r in enumerate(rows)])


def test_a_bad_item_stops_the_run_and_is_named():
    with pytest.raises(UserError, match=r"record fake/(3|7).*not a picture"):
        for step in range(3):
            make(spoiled()).batch(Position(0, 8 * step))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_bad_item_is_replaced_the_same_way_everywhere(cache_bytes):
    whole = make(spoiled(), on_bad="replace", cache_bytes=cache_bytes)
    for step in range(6):
        position = Position(0, 0).advance(8 * step, size=20)
        batch = whole.batch(position)
        assert not np.isin(batch.sample_ids, [3, 7]).any()
        assert batch.images.any(axis=(1, 2, 3, 4)).all()
        parts = [make(spoiled(), on_bad="replace", process_index=i, process_count=4).batch(position) for i in range(4)]
        assert equal(join(parts), batch)
        assert equal(make(spoiled(), on_bad="replace").batch(position), batch), "depends on what came before"
    assert whole.bad.report() == {"not a picture": {"count": 2, "ids": ["fake/3", "fake/7"]}}


def test_a_record_without_text_is_bad_too():
    pipeline = make(on_bad="replace", text=lambda r, rng: None if r.id == "fake/5" else "a")
    for step in range(3):
        pipeline.batch(Position(0, 0).advance(8 * step, size=20))
    assert pipeline.bad.report() == {"no text": {"count": 1, "ids": ["fake/5"]}}
    with pytest.raises(UserError, match="nearly all"):
        make(on_bad="replace", text=lambda r, rng: " ").batch(Position(0, 0))


def test_holdout_and_selection():
    rest, held = split_holdout(FakeSource(20), count=5)
    assert len(rest) == 15 and len(held) == 5 and sorted(rest.ids() + held.ids()) == sorted(FakeSource(20).ids())
    assert held.ids() == split_holdout(FakeSource(20), count=5)[1].ids()
    even = select(FakeSource(6), lambda i: i % 2 == 0)
    assert even.ids() == ["fake/0", "fake/2", "fake/4"] and even.record(1).id == "fake/2"
    with pytest.raises(UserError, match="hold out 20 of 20"):
        split_holdout(FakeSource(20), count=20)


def test_bad_options():
    for bad, message in (
        ({"batch_size": 6, "process_count": 4}, "multiple"),
        ({"batch_size": 4, "process_count": 2, "process_index": 2}, "process_index"),
        ({"batch_size": 4, "on_bad": "skip"}, "'skip'"),
    ):
        with pytest.raises(UserError, match=message):
            PipelineOptions(**bad)
    with pytest.raises(UserError, match="no records"):
        make(Subset(FakeSource(4), []))
    with pytest.raises(UserError, match="max_tokens"):
        make(layout=RowLayout(max_tokens=3, prefix_length=2, bos_id=1, eos_id=2)).batch(Position(0, 0))


def test_prefetching_hands_on_errors_and_stops():
    def failing():
        yield 1
        raise UserError("broken")

    stream = prefetch(failing(), depth=2)
    assert next(stream) == 1
    with pytest.raises(UserError, match="broken"):
        next(stream)
    endless = prefetch(iter(range(10**9)), depth=3)
    assert [next(endless) for _ in range(5)] == [0, 1, 2, 3, 4]
    mine = {thread for thread in threading.enumerate() if thread.name == "prefetch"}
    assert len(mine) >= 1
    endless.close()
    for thread in mine:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_a_closed_stream_computes_no_further():
    made = []
    stream = prefetch((made.append(i) or i for i in range(100)), depth=2)
    assert next(stream) == 0
    time.sleep(0.3)
    stream.close()
    assert len(made) <= 5


def test_missing_pictures_are_named():
    with pytest.raises(UserError, match="record x has no picture"):
        make(MemorySource([Record("x", None, ("a",))]), batch_size=1).batch(Position(0, 0))


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from frozen_jax.data.fake import FakeSource; import frozen_jax.data.easy_vqa\n"
        "from frozen_jax.data.pipeline import *; from frozen_jax.data.order import Position\n"
        "p = Pipeline(FakeSource(4), text=lambda r, g: r.captions[0], encode=lambda t: [1],\n"
        "    layout=RowLayout(8, 1, None, None), options=PipelineOptions(2, images=ImageOptions(8)))\n"
        "next(p.iterate()); assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
