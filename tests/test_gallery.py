"""Galleries: what is encoded when, what is refused, and that what is found is what the model's own vectors say."""

import dataclasses
import inspect
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save

from frozen_jax import gallery as gallery_module
from frozen_jax import nearest
from frozen_jax.api import Model
from frozen_jax.build import build_towers
from frozen_jax.config import default_config, from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.export.layout import MODEL_TYPE
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


def test_a_query_is_a_list_of_texts_and_pictures(plain, folder, tmp_path):
    index_folder(plain, folder, tmp_path / "g.safetensors")
    searcher = Searcher(plain, read_gallery(tmp_path / "g.safetensors", model=fingerprint_model(plain)))
    for asked, message in (
        (" a red patch", "parts"),
        (folder / "b.png", "parts"),
        ([3], "picture 0 is of type int"),
        ([" "], "an empty text"),
    ):
        with pytest.raises(UserError, match=message):
            inspect.unwrap(Searcher.find)(searcher, asked, k=1)


def test_words_before_a_text_are_asked_as_in_training(plain, folder, tmp_path):
    index_folder(plain, folder, tmp_path / "g.safetensors")
    gallery = read_gallery(tmp_path / "g.safetensors", model=fingerprint_model(plain))
    found = Searcher(plain, gallery).find([" a blue patch"], k=5, before=" This is")
    prompts = [(folder / name, " This is") for name, _ in found]
    expected = plain.score(prompts, [" a blue patch"], normalise=True)[:, 0]
    np.testing.assert_allclose([score for _, score in found], expected, atol=1e-5)
    assert found != Searcher(plain, gallery).find([" a blue patch"], k=5)


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


def test_what_is_no_file_to_open_is_left_out(model, folder, tmp_path):
    """A link to nothing, as a file is that was deleted since it was listed, and a pipe, which would wait for ever."""
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.png")
    changes = index_folder(model, folder, tmp_path / "index")
    assert changes[:4] == (0, 5, 0, 0) and sorted(changes.refused) == ["gone.png", "pipe.png"]
    assert "No such file" in changes.refused["gone.png"] and "is a pipe" in changes.refused["pipe.png"]
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "nothing")
    assert index_folder(model, folder, tmp_path / "index")[:4] == (4, 0, 0, 1)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"none of 1 pictures can be used; the first: .*gone\.png: cannot be read"):
        index_folder(model, tmp_path / "links", tmp_path / "other")


def test_names_need_not_be_utf_8(model, config, folder, tmp_path, monkeypatch, capsys):
    os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")
    (folder / "\udcfe.png").write_bytes(b"no picture")
    command(monkeypatch, model, config)
    retrieve.main(["index", str(folder), "--workdir=w", f"--out={tmp_path / 'index'}"])
    assert "left out: image " in (shown := capsys.readouterr().out) and "5 pictures" in shown
    gallery = read_gallery(tmp_path / "index", model=fingerprint_model(model))
    assert "\udcff.png" in gallery.ids
    assert index_folder(model, folder, tmp_path / "index").kept == 5
    sheet = tmp_path / "sheet.png"
    retrieve.main(["query", str(tmp_path / "index"), str(folder / "\udcff.png"), "--workdir=w", f"--sheet={sheet}"])
    assert capsys.readouterr().out.splitlines()[0].endswith("\\udcff.png") and sheet.exists()


def test_where_the_index_cannot_be_is_told_before_encoding(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Model, "map_image", lambda *_: pytest.fail("encoded"))
    for out, message in (
        (folder, "is a folder"),
        (tmp_path / "absent" / "index", "No such file or directory"),
        (folder / "a.png" / "index", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / ("x" * 250), "File name too long"),  # with what marks it as half written
    ):
        with pytest.raises(UserError, match=f"^--out=.*{message}"):
            index_folder(model, folder, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_an_impossible_name_is_told_as_such_when_writing(model, folder, tmp_path):
    index_folder(model, folder, tmp_path / "index")
    gallery = read_gallery(tmp_path / "index", model=fingerprint_model(model))
    for out, message in ((folder / "a.png" / "x", "Not a directory"), (tmp_path / ("x" * 300), "name too long")):
        with pytest.raises(UserError, match=f"could not be written .*{message}"):
            gallery_module.write_gallery(gallery, out)


def test_a_damaged_index_is_not_to_be_downloaded(model, folder, tmp_path):
    out = tmp_path / "index"
    for content in (b"", b"no index", save({"other": np.zeros(3, np.float32)}), save({"described": np.uint8([255])})):
        out.write_bytes(content)
        for use in (lambda: read_gallery(out, model=""), lambda: index_folder(model, folder, out)):
            with pytest.raises(UserError, match=r"is no index of pictures, or a damaged one \(.*remove this") as caught:
                use()
            assert "download" not in str(caught.value)
        assert out.read_bytes() == content
    with pytest.raises(UserError, match="no such index"):
        read_gallery(tmp_path / ("x" * 300), model="")


def test_only_consistent_indexes_are_read(model, folder, tmp_path):
    fingerprint = fingerprint_model(model)
    index_folder(model, folder, tmp_path / "index")
    whole = read_gallery(tmp_path / "index", model=fingerprint)
    said = {"format": gallery_module.FORMAT, **dataclasses.asdict(whole)}
    tensors = {name: said.pop(name) for name in ("stamps", "vectors")}
    for change in (
        {"ids": [0, 1, 2, 3, 4]},
        {"ids": "abcde"},
        {"ids": ["a.png"] * 5},
        *({"ids": [name, *whole.ids[1:]]} for name in ("", ".", "/a.png", "../a.png", "..", "a/../b.png", "a\0", None)),
        {"ids": [["a.png"], *whole.ids[1:]]},
        *({"folder": value} for value in (5, None, "", "pictures", "/\0")),
        {"model": 5},
        {"aligned": 1},
    ):
        described = np.frombuffer(json.dumps({**said, **change}).encode(), np.uint8)
        (tmp_path / "forged").write_bytes(save({**tensors, "described": described}))
        with pytest.raises(UserError, match="is no index of pictures, or a damaged one"):
            read_gallery(tmp_path / "forged", model=fingerprint)


def test_vectors_are_of_the_models_kind_and_shape(model, plain, folder, tmp_path):
    """What a fingerprint does not prove; else they end in a traceback, or are answered in another way."""
    for name, one in (("index", model), ("plain", plain)):
        index_folder(one, folder, out := tmp_path / name)
        whole = read_gallery(out, model=fingerprint_model(one))
        for aligned, shape in ((True, (5,)), (True, (16,)), (False, (3, 16)), (False, (2, 8)), (False, (2, 16))):
            if one is plain and shape == (2, 16):
                continue  # its own
            forged = dataclasses.replace(whole, aligned=aligned, vectors=np.ones((5, *shape), np.float32))
            gallery_module.write_gallery(forged, out)
            again = read_gallery(out, model=fingerprint_model(one))
            message = r"is damaged: its vectors are .* index the folder anew"
            with pytest.raises(UserError, match=message):
                Searcher(one, again)
            with pytest.raises(UserError, match=message):
                index_folder(one, folder, out)


def command(monkeypatch, model, config):
    """Lets the command find these for any workdir."""
    monkeypatch.setattr(retrieve, "load", lambda directory: model)
    monkeypatch.setattr(retrieve, "read_settings", lambda directory: config)


def fail(capsys, *words):
    """Runs the command; returns what it printed and its error."""
    with pytest.raises(SystemExit) as caught:
        retrieve.main([*words, "--workdir=w"])
    shown, error = capsys.readouterr()
    assert caught.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
    return shown, error


def test_an_export_is_asked_texts_as_they_are_given(plain, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retrieve, "load", lambda directory: plain)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE}))
    workdir = f"--workdir={tmp_path / 'export'}"
    retrieve.main(["index", str(folder), workdir, f"--out={tmp_path / 'index'}"])
    capsys.readouterr()
    retrieve.main(["query", str(tmp_path / "index"), " a blue patch", workdir, "--k=1"])
    gallery = read_gallery(tmp_path / "index", model=fingerprint_model(plain))
    ((name, score),) = Searcher(plain, gallery).find([" a blue patch"], k=1)
    assert capsys.readouterr().out == f"{score:8.4f}  {folder.resolve() / name}\n"


def test_the_command_refuses_texts_without_words_and_sheets_that_are_there(
    model, config, folder, tmp_path, monkeypatch, capsys
):
    command(monkeypatch, model, config)
    index_folder(model, folder, tmp_path / "index")
    query, sheet = ["query", str(tmp_path / "index")], tmp_path / "sheet.png"
    for text in ("", "   "):
        shown, error = fail(capsys, *query, "a blue patch", text)
        assert not shown and "say what to find, for example 'a red circle'" in error
    sheet.write_bytes(b"mine")
    shown, error = fail(capsys, *query, "a blue patch", f"--sheet={sheet}")
    assert not shown and "is there already; name another file or remove it" in error
    assert sheet.read_bytes() == b"mine"


def test_where_the_sheet_cannot_be_is_told_before_the_question(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retrieve, "query", lambda *_, **__: pytest.fail("asked"))
    query = ["query", str(tmp_path / "index"), "a"]
    for name in ("x.psd", "x.mpg", "x", ".png"):
        _, error = fail(capsys, *query, f"--sheet={tmp_path / name}")
        assert "its name must end in .png, .jpg, .jpeg, .webp; name such a file" in error
    for place, message in ((tmp_path / "no", "No such file"), (folder / "a.png", "Not a directory")):
        assert message in fail(capsys, *query, f"--sheet={place / 'x.png'}")[1]


def test_a_sheet_is_of_its_names_format(folder, tmp_path):
    for name, form in (("s.jpg", "JPEG"), ("s.JPEG", "JPEG"), ("t.WEBP", "WEBP")):
        retrieve.draw_sheet(tmp_path / name, "a", [(folder / "a.png", 0.5)])
        with PIL.Image.open(tmp_path / name) as drawn:
            assert drawn.format == form
    with pytest.raises(UserError, match=r"cannot be drawn \(.*name a PNG file, or take a smaller --k"):
        retrieve.draw_sheet(tmp_path / "s.webp", "a", [(folder / "a.png", 0.5)] * 130)  # 17,688 pixels wide


def test_a_sheet_that_was_made_meanwhile_stays(model, config, folder, tmp_path, monkeypatch, capsys):
    command(monkeypatch, model, config)
    index_folder(model, folder, tmp_path / "index")
    sheet, ask = tmp_path / "sheet.png", retrieve.query

    def slowly(*words, **options):
        sheet.write_bytes(b"somebody else's")
        return ask(*words, **options)

    monkeypatch.setattr(retrieve, "query", slowly)
    shown, error = fail(capsys, "query", str(tmp_path / "index"), "a", "--k=1", f"--sheet={sheet}")
    assert len(shown.splitlines()) == 1 and "sheet.png: is there already and is not replaced" in error
    assert sheet.read_bytes() == b"somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "pictures", "sheet.png"]


def test_what_was_found_is_printed_when_the_sheet_cannot_be_drawn(model, config, folder, tmp_path, monkeypatch, capsys):
    command(monkeypatch, model, config)
    index_folder(model, folder, tmp_path / "index")
    (folder / "b.png").unlink()
    sheet = tmp_path / "sheet.png"
    shown, error = fail(capsys, "query", str(tmp_path / "index"), "a blue patch", f"--sheet={sheet}")
    assert len(shown.splitlines()) == 5 and not sheet.exists()
    assert "b.png was changed since it was indexed (missing); index the folder again" in error


def test_the_fingerprint_is_of_all_that_decides(model):
    images = dataclasses.replace(model.images, size=18)
    moved = {**model.params, "retrieval": jax.tree.map(lambda leaf: leaf + 1, model.params["retrieval"])}
    changed = [{"images": images}, {"blind": True}, {"bos": False}, {"params": moved}]
    others = [dataclasses.replace(model, **change) for change in changed]
    assert len({fingerprint_model(one) for one in [model, *others]}) == 5


def test_the_command(model, config, folder, tmp_path, monkeypatch, capsys):
    command(monkeypatch, model, config)
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
