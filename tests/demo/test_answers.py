"""What the page answers, without a page: against the model's own calls, and each refusal."""

import dataclasses

import numpy as np
import pytest

from frozen_jax import Image
from frozen_jax.data.images import load_image
from frozen_jax.demo import answers
from frozen_jax.demo.answers import Demo, find_pictures, list_alternatives, open_demo
from frozen_jax.demo.examples import COUNT, write_examples
from frozen_jax.demo.wording import Wording
from frozen_jax.errors import UserError
from frozen_jax.export.write import write_pytorch
from frozen_jax.fusing import fuse
from frozen_jax.restore import read_run


@pytest.fixture(scope="module")
def files(pictures):
    return sorted(pictures.glob("[0-3].png"))


def test_a_caption_and_an_answer_are_the_models(demo, files):
    for file in files[:2]:
        made = demo.caption(file)
        assert made.text == demo.model.generate([[file]], max_new_tokens=6, stop=("[eos]", "\n"))[0].strip()
        assert (made.prompt, made.alternatives) == ("[img]", ())
    made = demo.ask(files[0], " where is it? ")
    asked = [[files[0], " Q: where is it? A:"]]
    assert made.text == demo.model.generate(asked, max_new_tokens=6, stop=("[eos]", "\n", "Question:"))[0].strip()
    assert made.prompt == "[img] Q: where is it? A:"
    again = demo.ask(files[0], "where is it?")
    assert again.text == made.text and again.compile_s < 0.01 < again.seconds + 1
    assert demo.caption(files[0]).text != demo.caption(files[1]).text  # else nothing here says anything


def test_alternatives_have_the_probabilities_of_the_model(demo, files):
    shots = [(files[1], "a red."), (None, " "), (files[2], " a blue. ")]
    made = demo.continue_prompt(shots, files[0], "a", "red, blue\npatch at the top,,red")
    assert made.prompt == "[img] a red.[img] a blue.[img] a"
    prompt = [[files[1], " a red.", files[2], " a blue.", files[0], " a"]]
    assert made.spelled == demo.model.generate(prompt, max_new_tokens=6, stop=("[eos]", "\n", "Question:"))[0]
    names, probabilities, shares = zip(*made.alternatives, strict=True)
    assert {*names} == {"red", "blue", "patch at the top", made.text}  # the last one as it was spelled
    asked = [made.spelled if name == made.text else f" {name}" for name in names]
    expected = np.exp(demo.model.score(prompt, asked)[0].astype(np.float64))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-4)
    assert list(probabilities) == sorted(probabilities, reverse=True) and len(set(probabilities)) == len(names)
    assert demo.continue_prompt(shots, files[0], "a").alternatives == ()


def test_names_have_shares_and_what_the_picture_adds_to_them(demo, files, examples):
    made = demo.name_picture(files[1], "red, a blue patch\ntop,,red")
    names, shares, added = zip(*made.names, strict=True)
    assert {*names} == {"red", "a blue patch", "top"} and made.prompts == ("[img] This is a",)
    asked = [f" {name}" for name in names]
    scores = demo.model.score([[files[1], " This is a"]], asked, normalise=True)[0].astype(np.float64)
    np.testing.assert_allclose(shares, np.exp(scores) / np.exp(scores).sum(), rtol=1e-4)
    assert list(shares) == sorted(shares, reverse=True) and len(set(shares)) == 3
    mean = demo.model.embed_image([*files, *examples]).mean(axis=0)[None]
    prior = demo.model.score([[Image(0), " This is a"]], asked, normalise=True, prefixes=mean)[0]
    np.testing.assert_allclose(added, scores - prior, atol=1e-4)
    assert np.abs(added).min() > 1e-3
    wording = dataclasses.replace(demo.wording, naming=("[img]", "[img] a"), name=" {name}!")
    other = Demo(demo.model, name="x", wording=wording, examples=files[:1]).name_picture(files[1], "red,top").names
    each = [demo.model.score([[files[1], *words]], [" red!", " top!"], normalise=True)[0] for words in ([], [" a"])]
    worth = np.mean(each, axis=0)
    expected = np.exp(worth) / np.exp(worth).sum()
    np.testing.assert_allclose([share for _, share, _ in sorted(other)], expected, rtol=1e-4)


def test_a_ranking_is_by_what_a_picture_adds(demo, files):
    made = demo.retrieve("a red patch")
    assert demo.gallery == tuple(files) and sorted(made.rows) == [0, 1, 2, 3]
    table = demo.model.embed_image(files)
    mean = demo.model.score([[Image(0)]], [" a red patch"], normalise=True, prefixes=table.mean(axis=0)[None])[0, 0]
    each = [demo.model.score([[file]], [" a red patch"], normalise=True)[0, 0] - mean for file in files]
    np.testing.assert_allclose(made.scores, sorted(each, reverse=True), rtol=1e-3, atol=1e-4)
    assert made.rows == tuple(np.argsort(each)[::-1].tolist())


def test_a_fusion_names_the_class_of_a_picture_and_a_text(fusion_demo, fusion_workdir, files, pictures):
    model, asked = fusion_demo.model, "what color is the patch?"
    made = fusion_demo.classify(files[0], f" {asked} ")
    expected = dict(
        zip(("red", "<b>blue</b>", "green"), fuse(model, [(files[0], asked)]).probabilities[0], strict=True)
    )
    assert dict(made.probabilities) == pytest.approx(expected, rel=1e-5)
    assert [share for _, share in made.probabilities] == sorted(expected.values(), reverse=True)
    for other in (fusion_demo.classify(files[1], asked), fusion_demo.classify(files[0], "is it?")):
        assert dict(other.probabilities) != pytest.approx(expected, rel=1e-3)
    network = dataclasses.replace(model.network, fusion=model.network.fusion.clone(kind="image"))
    alone = Demo(dataclasses.replace(model, network=network), name="x", wording=Wording(item="picture"), examples=())
    assert alone.classify(files[0]).probabilities == alone.classify(files[0], "is it?").probabilities
    assert fusion_demo.describe() == (
        "NFResNet encoder · fusion gated, 3 classes · text side gpt2, 2 layers, 0.0 million parameters · on CPU"
    )
    for call, says in (
        (lambda: fusion_demo.classify(None, asked), "no picture yet"),
        (lambda: fusion_demo.classify(files[0], " "), "The question is empty"),
        (lambda: fusion_demo.classify(files[0], "patch " * 80), "64 positions"),
        (lambda: open_demo(fusion_workdir, examples=(), gallery=pictures), "ranks no pictures"),
    ):
        with pytest.raises(UserError, match=says):
            call()


def test_a_text_is_drawn_as_the_model_draws_it(painter):
    demo, directory = painter
    made = demo.draw(" a red patch ", 3, 2.0)
    expected = demo.model.draw([" a red patch"] * 2, steps=2, guidance=1.5, seed=3)
    assert made.prompt == " a red patch" and made.pictures.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(made.pictures, expected)
    assert (made.pictures[0] != made.pictures[1]).any()
    assert (demo.draw("a red patch", 4, 2).pictures != expected).any()
    assert demo.describe() == (
        "draws 16 x 16 pixels · generator of 0.0 million parameters · language model gpt2, 2 layers, 0.0 million "
        "parameters · on CPU"
    )
    for call, says in (
        (lambda: demo.draw(" ", 0, 1), "The text is empty"),
        (lambda: demo.draw("x" * 501, 0, 1), "501 characters. Use at most 500"),
        (lambda: demo.draw("patch " * 80, 0, 1), "the language model has room for"),
        (lambda: demo.draw("a", None, 1), "The seed must be a whole number from 0 to 2147483647"),
        (lambda: demo.draw("a", -1, 1), "The seed must be"),
        (lambda: demo.draw("a", float("inf"), 1), "The seed must be"),
        (lambda: demo.draw("a", 0.5, 1), "The seed must be"),
        (lambda: demo.draw("a", 0, 5), "The number of pictures must be a whole number from 1 to 4"),
        (lambda: demo.draw("a", 0, 0), "The number of pictures must be"),
        (lambda: open_demo(directory, examples=(), gallery=directory), "draws pictures and ranks no pictures"),
    ):
        with pytest.raises(UserError, match=says):
            call()


def test_what_is_missing_is_said(demo, files, tmp_path):
    for call, says in (
        (lambda: demo.caption(None), "no picture yet"),
        (lambda: demo.ask(files[0], "  "), "The question is empty"),
        (lambda: demo.ask(None, "what?"), "no picture yet"),
        (lambda: demo.ask(files[0], "x" * 501), "501 characters. Use at most 500"),
        (lambda: demo.ask(files[0], "patch " * 80), "the language model has 64 positions"),
        (lambda: demo.continue_prompt([(files[0], "")], files[0], "a"), "Example 1 has no words"),
        (lambda: demo.continue_prompt([(None, "a red.")], files[0], "a"), "Example 1 has no picture"),
        (lambda: demo.continue_prompt([], files[0], "a", ",".join("abcdefghijklm")), "at most 12"),
        (lambda: demo.continue_prompt([], None, "a"), "no picture yet"),
        (lambda: demo.name_picture(None, "a"), "no picture yet"),
        (lambda: demo.name_picture(files[0], " ,\n"), "no names yet"),
        (lambda: demo.name_picture(files[0], ",".join(map(str, range(51)))), "51 names are too many. Give at most 50"),
        (lambda: demo.name_picture(files[0], "x" * 1001), "1001 characters. Use at most 1000"),
        (lambda: demo.name_picture(files[0], "patch " * 80), "the language model has 64 positions"),
        (lambda: demo.retrieve(""), "The text is empty"),
        (lambda: demo.caption(tmp_path / "gone.png"), "cannot be read"),
        (lambda: Demo(demo.model, name="x", wording=Wording(), examples=files).retrieve("a"), "--gallery"),
    ):
        with pytest.raises(UserError, match=says):
            call()
    assert list_alternatives(" a ,b\n\n b,", "names") == ["a", "b"]


def test_a_gallery_takes_what_opens_and_no_more_than_it_may(demo, pictures, tmp_path, monkeypatch):
    assert [path.name for path in find_pictures(pictures, demo.model)] == ["0.png", "1.png", "2.png", "3.png"]
    monkeypatch.setattr(answers, "GALLERY", 2)
    assert [path.name for path in find_pictures(pictures, demo.model)] == ["0.png", "1.png"]
    with pytest.raises(UserError, match="holds no picture"):
        find_pictures(tmp_path, demo.model)
    with pytest.raises(UserError, match="is not a folder"):
        find_pictures(tmp_path / "nowhere", demo.model)


def test_an_export_answers_as_its_run(demo, files, tmp_path):
    (tmp_path / "export").mkdir()
    write_pytorch(demo.model, tmp_path / "export", card="")
    exported = open_demo(tmp_path / "export", examples=files)
    alike = Demo(exported.model, name="x", wording=demo.wording, examples=files)
    assert alike.caption(files[0]).text == demo.caption(files[0]).text
    assert (exported.name, exported.gallery, exported.wording) == ("export", (), Wording())
    assert exported.wording.question == " Question: {question} Answer:" and exported.wording.max_new_tokens == 20


def test_the_description_names_the_parts(demo):
    assert demo.name == "a_model"
    assert demo.describe() == (
        "NFResNet encoder · 2 prefix vectors for each picture · language model gpt2, 2 layers, 0.0 million parameters"
        " · on CPU"
    )


def test_examples_are_the_runs_or_drawn(workdir, tmp_path, demo):
    config = read_run(workdir)
    own = write_examples(tmp_path, config)
    assert 1 < len(own) <= COUNT and all("patch at the" in example.caption for example in own)
    assert len({example.caption for example in own}) == len(own)
    drawn = write_examples(tmp_path, None)
    assert len(drawn) == COUNT and drawn[0].caption == "a red circle" and drawn[2].caption == "a green triangle"
    pixels = [load_image(example.path, options=demo.model.images) for example in drawn]
    assert len({array.tobytes() for array in pixels}) == COUNT
