"""Galleries: what is encoded when, what is refused, and that what is found is what the model's own vectors say."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from frozen_jax import gallery as gallery_module
from frozen_jax import nearest
from frozen_jax.api import Model
from frozen_jax.build import build_towers
from frozen_jax.config import default_config, from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.gallery import Searcher, fingerprint_model, index_folder, read_gallery
from frozen_jax.restore import make_model
from frozen_jax.state import merge
from frozen_jax.tools import retrieve

NAMES = ["a.png", "b.png", "deep/c.png", "d.png", "e.png"]


@pytest.fixture(scope="module")
def config(tiny_lm):
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.prefix.layer_norm = config.data.bos = True
    config.data.train = config.data.validation = "fake:8"
    config.data.caption_format = " {caption}"
    config.data.image.size = 16
    config.evaluate.batch_size = 4
    config.retrieval.weight, config.retrieval.width = 1.0, 4
    return from_config_dict(config)


@pytest.fixture(scope="module")
def model(config):
    """Trained for retrieval, as far as its parts go: the weights are as they were drawn."""
    towers = build_towers(config)
    return make_model(config, towers, merge(towers.trainable, towers.frozen))


@pytest.fixture(scope="module")
def plain(model):
    """The same model without a retrieval head."""
    params = {name: tree for name, tree in model.params.items() if name != "retrieval"}
    return dataclasses.replace(model, network=dataclasses.replace(model.network, retrieval=None), params=params)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        paint(tmp_path / "pictures" / name, seed)
    (tmp_path / "pictures" / "note.txt").write_text("no picture")
    return tmp_path / "pictures"


def paint(path, seed):
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def test_vectors_are_those_of_single_unpadded_rows(model):
    network, params = model.network, model.params
    pictures = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8) for seed in range(3)]
    prompts = [(" a",), (" a blue patch at the top",), (pictures[0], " red"), (" the", pictures[1], pictures[2], " a")]
    made = model.embed_prompts(prompts, retrieval=True)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    prefixes = jnp.asarray(model.embed_image(pictures))
    bos, encode = [model.tokenizer.bos_id], model.tokenizer.encode
    last = [*bos, *encode(" the"), *[-1] * 4, *encode(" a")]
    for row, (ids, table) in enumerate([(bos + encode(prompts[1][0]), None), (last, prefixes[None, 1:])]):
        embeddings = network.embed(params, jnp.asarray([ids]), table)
        alone = network.map_texts(params, embeddings, jnp.ones((1, len(ids)), bool))[0]
        np.testing.assert_allclose(made[(1, 3)[row]], alone, rtol=1e-4, atol=1e-5)
    pooled = network.pool_images(params, jnp.asarray(pictures)[:, None])[:, 0]
    np.testing.assert_allclose(model.map_image(pictures), network.map_images(params, pooled), rtol=1e-4, atol=1e-5)
    assert model.map_image([]).shape == (0, 4) and model.embed_image([]).shape == (0, 2, 16)


def test_what_is_found_is_what_the_vectors_say(model, folder, tmp_path):
    index_folder(model, folder, tmp_path / "index")
    searcher = Searcher(model, read_gallery(tmp_path / "index", model=fingerprint_model(model)))
    seen = model.map_image([folder / name for name in sorted(NAMES)])
    image = {name: folder / name for name in NAMES}
    for turns in (  # each found by itself, the cosines added
        [(" a blue patch",)],
        [(image["d.png"],)],
        [(image["a.png"], " but red")],
        [(" a blue patch",), (" no, red",), (" a blue patch",)],
        [(image["b.png"],), (image["a.png"], " but red"), (" and larger",)],
        [(" a patch",), (image["a.png"],), (image["e.png"],)],
    ):
        cosines = np.zeros(len(NAMES))
        for turn in turns:
            alone = len(turn) == 1 and not isinstance(turn[0], str)
            cosines += seen @ (model.map_image(turn) if alone else model.embed_prompts([turn], retrieval=True))[0]
        order = np.argsort(-cosines)
        found = searcher.find([part for turn in turns for part in turn], k=3)
        assert [name for name, _ in found] == [sorted(NAMES)[row] for row in order[:3]]
        np.testing.assert_allclose([score for _, score in found], cosines[order[:3]], rtol=1e-4, atol=1e-6)
    assert searcher.find([folder / "d.png"], k=9)[0] == ("d.png", pytest.approx(1, abs=1e-5))
    with pytest.raises(UserError, match="k of at least 1"):
        searcher.find([" a"], k=0)


def test_several_turns_find_the_same_in_an_approximate_search(model, folder, tmp_path, monkeypatch):
    """So few vectors are one list, in which faiss misses none; scores are sums of cosines there, too."""
    pytest.importorskip("faiss")
    index_folder(model, folder, tmp_path / "index")
    gallery = read_gallery(tmp_path / "index", model=fingerprint_model(model))
    exact = Searcher(model, gallery)
    monkeypatch.setattr(nearest, "APPROXIMATE_FROM", 1)
    near = Searcher(model, gallery)
    assert isinstance(near.nearest, nearest.ApproximateSearch)
    for query in ([" a blue patch"], [" a blue patch", " no, red"], [folder / "a.png", " but red", " and larger"]):
        found, expected = near.find(query, k=3), exact.find(query, k=3)
        assert [name for name, _ in found] == [name for name, _ in expected]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=1e-5)


def test_without_a_retrieval_head_texts_are_found_by_their_likelihood(plain, folder, tmp_path):
    index_folder(plain, folder, tmp_path / "index")
    searcher = Searcher(plain, read_gallery(tmp_path / "index", model=fingerprint_model(plain)))
    names = sorted(NAMES)
    scores = plain.score([[folder / name] for name in names], [" a blue patch"], normalise=True)[:, 0]
    found = searcher.find([" a blue patch"], k=5)
    assert [name for name, _ in found] == [names[row] for row in np.argsort(-scores)]
    np.testing.assert_allclose([score for _, score in found], -np.sort(-scores), rtol=1e-4)
    assert searcher.find([folder / "b.png"], k=1)[0][0] == "b.png"
    with pytest.raises(UserError, match="several parts"):
        searcher.find([folder / "b.png", " red"], k=1)
    with pytest.raises(UserError, match="not trained for retrieval"):
        plain.map_image([folder / "b.png"])
    with pytest.raises(UserError, match="not trained for retrieval"):
        plain.embed_prompts([(" a",)], retrieval=True)


def test_only_new_and_changed_pictures_are_encoded_again(model, folder, tmp_path, monkeypatch):
    out, encoded = tmp_path / "index", []
    look = Model.map_image
    monkeypatch.setattr(Model, "map_image", lambda self, images: encoded.append(len(images)) or look(self, images))
    (folder / "broken.png").write_bytes(b"no picture")
    first = index_folder(model, folder, out)
    assert (first.kept, first.added, first.changed, first.removed) == (0, 5, 0, 0)
    assert list(first.refused) == ["broken.png"] and "broken.png" in first.refused["broken.png"]
    content = out.read_bytes()
    assert index_folder(model, folder, out)[:4] == (5, 0, 0, 0)
    assert out.read_bytes() == content
    paint(folder / "new.png", 9)
    paint(folder / "b.png", 10)
    os.utime(folder / "b.png", ns=(1, 1))  # another time, whatever the clock's grain
    (folder / "d.png").unlink()
    assert index_folder(model, folder, out)[:4] == (3, 1, 1, 1)
    assert encoded == [5, 2]
    index_folder(model, folder, tmp_path / "anew")
    assert (tmp_path / "anew").read_bytes() == out.read_bytes(), "step by step is as at once"


def test_an_interrupted_update_leaves_the_old_index(model, folder, tmp_path, monkeypatch):
    index_folder(model, folder, tmp_path / "index")
    content = (tmp_path / "index").read_bytes()
    paint(folder / "new.png", 9)
    with monkeypatch.context() as broken, pytest.raises(UserError, match="could not be written"):
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        index_folder(model, folder, tmp_path / "index")
    assert (tmp_path / "index").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "pictures"]


def test_what_does_not_fit_is_refused(model, plain, folder, tmp_path):
    index_folder(model, folder, tmp_path / "index")
    fingerprint = fingerprint_model(model)
    with pytest.raises(UserError, match="made by another model"):
        read_gallery(tmp_path / "index", model=fingerprint_model(plain))
    with pytest.raises(UserError, match="made by another model"):
        index_folder(plain, folder, tmp_path / "index")
    with pytest.raises(UserError, match="is the index of"):
        index_folder(model, folder / "deep", tmp_path / "index")
    with pytest.raises(UserError, match="no such index"):
        read_gallery(tmp_path / "nothing", model=fingerprint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        index_folder(model, tmp_path / "empty", tmp_path / "other")
    content = (tmp_path / "index").read_bytes()
    for number in range(0, len(content), 7):
        (tmp_path / "cut").write_bytes(content[:number])
        with pytest.raises(UserError, match="cut"):
            read_gallery(tmp_path / "cut", model=fingerprint)
    other = dataclasses.replace(read_gallery(tmp_path / "index", model=fingerprint), ids=("a.png",))
    gallery_module.write_gallery(other, tmp_path / "short")
    with pytest.raises(UserError, match="damaged"):
        read_gallery(tmp_path / "short", model=fingerprint)


def test_the_fingerprint_is_of_all_that_decides(model):
    images = dataclasses.replace(model.images, size=18)
    moved = {**model.params, "retrieval": jax.tree.map(lambda leaf: leaf + 1, model.params["retrieval"])}
    changed = [{"images": images}, {"blind": True}, {"bos": False}, {"params": moved}]
    others = [dataclasses.replace(model, **change) for change in changed]
    assert len({fingerprint_model(one) for one in [model, *others]}) == 5


def test_the_command(model, config, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retrieve, "load", lambda directory: model)
    monkeypatch.setattr(retrieve, "read_settings", lambda directory: config)
    out, sheet = tmp_path / "index", tmp_path / "sheet.png"
    retrieve.main(["index", str(folder), "--workdir=w", f"--out={out}"])
    assert "5 pictures; 5 new, 0 changed, 0 as they were, 0 gone, 0 left out" in capsys.readouterr().out
    retrieve.main(["query", str(out), "a blue patch", "--workdir=w", "--k=2", f"--sheet={sheet}"])
    lines = capsys.readouterr().out.splitlines()
    found = Searcher(model, read_gallery(out, model=fingerprint_model(model))).find([" a blue patch"], k=2)
    assert [line.split("  ")[-1] for line in lines] == [str(folder.resolve() / name) for name, _ in found]
    with PIL.Image.open(sheet) as drawn:
        assert drawn.width == 8 + 2 * 136
    retrieve.main(["query", str(out), str(folder / "d.png"), "--workdir=w", "--k=1"])
    assert capsys.readouterr().out.endswith("d.png\n")
    with pytest.raises(SystemExit):
        retrieve.main(["query", str(tmp_path / "nothing"), "a", "--workdir=w"])
    assert capsys.readouterr().err.startswith("error: ")
