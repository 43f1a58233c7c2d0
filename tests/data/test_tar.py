"""Tar shards: found without extraction, indexed once, and everything wrong with them told by id and reason."""

import io
import json
import os
import tarfile
import time

import pytest
from PIL import Image

from frozen_jax.data import index_cache
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.loading import ImageLoader, load_all
from frozen_jax.data.records import RecordError
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError


def jpeg(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(keys):
    for key in keys:
        yield f"{key}.jpg", jpeg()
        yield f"{key}.txt", f"caption {key}".encode()
        yield f"{key}.json", json.dumps({"caption": f"json {key}", "url": "u"}).encode()


def test_shards_in_order_with_captions(tmp_path):
    write(tmp_path / "00001.tar", samples(["d", "sub/e"]))
    write(tmp_path / "00000.tar", samples(["a", "b", "c"]))
    source = open_source(f"tar:{tmp_path}/*.tar")
    assert source.ids() == ["00000.tar/a", "00000.tar/b", "00000.tar/c", "00001.tar/d", "00001.tar/sub/e"]
    assert [source.record(i).captions for i in (0, 4)] == [("caption a",), ("caption sub/e",)]
    assert load_all(source, options=ImageOptions(8)).shape == (5, 8, 8, 3)
    assert open_source(f"tar:{tmp_path}").ids() == source.ids() == open_source(f"tar:{tmp_path}/0000?.tar").ids()


def test_the_caption_of_the_json(tmp_path):
    write(tmp_path / "x.tar", [(n, d) for n, d in samples(["a"]) if not n.endswith("txt")])
    assert open_source(f"tar:{tmp_path}/x.tar").record(0).captions == ("json a",)
    assert open_source(f"tar:{tmp_path}/x.tar?caption=url").record(0).captions == ("u",)


def test_an_index_is_made_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    shard = write(tmp_path / "x.tar", samples(["a", "b"]))
    assert len(open_source(f"tar:{shard}")) == 2 and (tmp_path / ".x.tar.index").exists()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("read again"))
        assert len(open_source(f"tar:{shard}")) == 2
    write(shard, samples(["a", "b", "c"]))
    os.utime(shard, ns=(time.time_ns(), time.time_ns() + 1))
    assert len(open_source(f"tar:{shard}")) == 3
    index = tmp_path / ".x.tar.index"
    index.write_bytes(index.read_bytes()[:-20])
    assert len(open_source(f"tar:{shard}")) == 3, "a cut index is not believed"


def test_where_the_folder_cannot_be_written(tmp_path, monkeypatch):
    shard = write(tmp_path / "x.tar", samples(["a"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_index = index_cache._write
    monkeypatch.setattr(
        index_cache, "_write", lambda place, rows: place.parent != tmp_path and write_index(place, rows)
    )
    assert len(open_source(f"tar:{shard}")) == 1
    assert not (tmp_path / ".x.tar.index").exists()
    assert len(list((tmp_path / "cache/frozen_jax/index").iterdir())) == 1
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("read again"))
    assert len(open_source(f"tar:{shard}")) == 1


def reasons(source):
    found = {}
    for index, name in enumerate(source.ids()):
        try:
            source.record(index)
        except RecordError as error:
            assert "\n" not in str(error)
            found[name] = error.reason
    return found


def test_unsafe_members_are_refused_and_named(tmp_path):
    link, device = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("device.jpg")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    members = [("a.jpg", jpeg()), ("../evil.jpg", jpeg()), ("/abs.jpg", jpeg()), ("x/../../y.jpg", jpeg())]
    source = open_source(f"tar:{write(tmp_path / 'x.tar', [*members, ('', link), ('', device), ('b.jpg', jpeg())])}")
    assert reasons(source) == {
        "x.tar/../evil.jpg": "unsafe name", "x.tar//abs.jpg": "unsafe name", "x.tar/x/../../y.jpg": "unsafe name",
        "x.tar/link.jpg": "not a file", "x.tar/device.jpg": "not a file",
    }  # fmt: skip
    assert [source.record(i).id for i in (0, len(source) - 1)] == ["x.tar/a", "x.tar/b"]
    assert not (tmp_path.parent / "evil.jpg").exists()


def test_duplicate_keys_and_bad_text(tmp_path):
    members = [*samples(["a", "b"]), ("a.jpg", jpeg("blue")), ("c.jpg", jpeg()), ("c.txt", b"\xff\xfe\xff")]
    members += [("d.jpg", jpeg()), ("d.json", b"{")]
    source = open_source(f"tar:{write(tmp_path / 'x.tar', members)}")
    assert source.ids() == [f"x.tar/{k}" for k in "abacd"]
    assert reasons(source) == {"x.tar/a": "duplicate key", "x.tar/c": "not UTF-8", "x.tar/d": "not JSON"}


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.8])
def test_a_cut_shard_gives_what_is_whole(tmp_path, kept):
    shard = write(tmp_path / "x.tar", samples([f"k{i}" for i in range(10)]))
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * kept)])
    source = open_source(f"tar:{shard}")
    assert reasons(source) == {"x.tar/(end)": "cut shard"}
    assert 10 * kept - 2.5 <= len(source) - 1 <= 10 * kept + 1
    _, bad = ImageLoader(source, ImageOptions(8)).load(range(len(source)))
    assert {b.reason for b in bad.values()} <= {"cut shard", "no picture"} and len(bad) <= 2


def test_a_shard_that_vanishes_or_shrinks_later(tmp_path):
    shard = write(tmp_path / "x.tar", samples(["a", "b"]))
    source = open_source(f"tar:{shard}")
    shard.write_bytes(shard.read_bytes()[:600])
    assert reasons(source) == {"x.tar/a": "cut shard", "x.tar/b": "cut shard"}
    shard.unlink()
    assert reasons(source) == {"x.tar/a": "missing", "x.tar/b": "missing"}


def test_what_is_no_plain_tar(tmp_path):
    (tmp_path / "text.tar").write_text("this is no tar file" * 100)
    with pytest.raises(UserError, match="not a tar file"):
        open_source(f"tar:{tmp_path}/text.tar")
    write(tmp_path / "z.tar", samples(["a"]), mode="w:gz")
    with pytest.raises(UserError, match="compressed"):
        open_source(f"tar:{tmp_path}/z.tar")
