"""The public API on a random two-layer model: against full forward passes, by itself and in batches, twice."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import frozen_jax
from frozen_jax import Image, api
from frozen_jax.build import build_towers
from frozen_jax.config import default_config, from_config_dict
from frozen_jax.decode import _generate
from frozen_jax.errors import UserError
from frozen_jax.prompt import check_pictures, count_prefixes, encode_prompt, name_picture
from frozen_jax.restore import make_model
from frozen_jax.scoring import score_continuations
from frozen_jax.state import merge

T = 6
PICTURES = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8) for seed in range(3)]
PROMPTS = [
    [PICTURES[0], " a red"],
    [" a blue patch"],
    [" the", PICTURES[1], " patch at", PICTURES[0], PICTURES[2], " a"],
]
CONTINUATIONS = [" red", " a blue patch at the top", "x"]


@pytest.fixture(scope="module")
def model(tiny_lm):
    """Untrained, with a prefix as large as words, so that pictures matter."""
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.prefix.layer_norm = config.data.bos = True
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size = 16
    config.evaluate.batch_size = 4
    config = from_config_dict(config)
    towers = build_towers(config)
    return make_model(config, towers, merge(towers.trainable, towers.frozen))


@pytest.fixture(scope="module")
def log_probabilities(model):
    """The slow reference: log-probabilities after every position of one unpadded sequence, without cache or batch."""

    @jax.jit
    def run(params, tokens, images):
        prefixes = model.network.embed_images(params, images)
        embeddings = model.network.embed(params, tokens, prefixes)
        hidden = model.network.run_lm(params, embeddings, (tokens != -2).astype(jnp.int32))
        return jax.nn.log_softmax(model.network.logits(params, hidden))

    def forward(prompt, new_ids):
        pictures = [part for part in prompt if not isinstance(part, str)]
        rows = tuple(part if isinstance(part, str) else Image(0) for part in prompt)
        ids = encode_prompt(rows, encode=model.tokenizer.encode, prefix_length=2, opening=(model.tokenizer.bos_id,))
        tokens = np.full((1, 56), -2, np.int32)  # one shape; what stands behind is masked out
        tokens[0, : len(ids) + len(new_ids)] = [*ids, *new_ids]
        shown = np.zeros((1, 3, 16, 16, 3), np.uint8)
        shown[0, : len(pictures)] = np.reshape(pictures, (len(pictures), 16, 16, 3))
        return np.asarray(run(model.params, tokens, shown))[0, len(ids) - 1 : len(ids) + len(new_ids)]

    return forward


def test_greedy_text_is_that_of_full_forward_passes(model, log_probabilities):
    texts = model.generate(PROMPTS, max_new_tokens=T, stop=())
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = []
        for _ in range(T):
            ids.append(int(log_probabilities(prompt, ids)[-1].argmax()))
        assert text == model.tokenizer.decode(ids)
    assert len(set(texts)) == 3


def test_scores_are_those_of_full_forward_passes(model, log_probabilities):
    scores = model.score(PROMPTS, CONTINUATIONS)
    normalised = model.score(PROMPTS, CONTINUATIONS, normalise=True)
    assert scores.shape == (3, 3)
    for row, prompt in enumerate(PROMPTS):
        for column, text in enumerate(CONTINUATIONS):
            ids = model.tokenizer.encode(text)
            expected = log_probabilities(prompt, ids)[np.arange(len(ids)), ids].sum()
            np.testing.assert_allclose(scores[row, column], expected, rtol=1e-4)
            np.testing.assert_allclose(normalised[row, column], expected / len(ids), rtol=1e-4)
    np.testing.assert_array_equal(model.score(PROMPTS, [CONTINUATIONS] * 3), scores)
    own = model.score(PROMPTS, [CONTINUATIONS, CONTINUATIONS[::-1], CONTINUATIONS])
    np.testing.assert_allclose(own[1], scores[1, ::-1], rtol=1e-6)


def test_the_second_call_is_the_first_bitwise_and_compiles_nothing(model):
    def call():
        texts = model.complete(PROMPTS, max_new_tokens=T)
        return texts, model.score(PROMPTS, CONTINUATIONS), model.embed_image(PICTURES), model.embed_text(["a red", "a"])

    compiled = [api._embed_images, api._embed_prompts, _generate, score_continuations, api.pool_states]
    first = call()
    sizes = [function._cache_size() for function in compiled]
    model.score([[" a red"], [" the patch", PICTURES[1], PICTURES[1], PICTURES[2]], [PICTURES[0], " a"]], CONTINUATIONS)
    second = call()
    assert [function._cache_size() for function in compiled] == sizes
    assert first[0] == second[0]
    for one, other in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_shots_that_prompts_share_are_computed_once_and_change_nothing(model, monkeypatch):
    """Each prompt of a call against itself in a call of its own, where nothing is shared."""
    shots = [[PICTURES[0], " a red patch", PICTURES[1], " a blue patch"], [PICTURES[2], " a blue patch", " at the top"]]
    queries = [[PICTURES[1], " a"], [PICTURES[2], " a"], [PICTURES[0], " the top"]]
    prompts = [[*before, *query] for query in queries for before in shots]
    positions = []
    embed = api._embed_prompts
    monkeypatch.setattr(
        api, "_embed_prompts", lambda n, p, tokens, x: positions.append(tokens.size) or embed(n, p, tokens, x)
    )
    together = model.complete(prompts, max_new_tokens=T)
    assert sum(positions) == 3 * 16 + 8 * 8  # the second beginning leads over two batches of four rows
    scores = model.score(prompts, CONTINUATIONS)
    positions.clear()
    alone = [model.complete([prompt], max_new_tokens=T)[0] for prompt in prompts]
    assert sum(positions) >= 6 * 16
    assert together == alone and len(set(together)) > 1
    for row, prompt in enumerate(prompts):
        np.testing.assert_allclose(scores[row], model.score([prompt], CONTINUATIONS)[0], rtol=1e-5, atol=1e-5)


def test_another_stop_rule_needs_no_other_program(model):
    model.complete(PROMPTS, max_new_tokens=T, stop=["at"])
    compiled = _generate._cache_size()
    model.complete(PROMPTS, max_new_tokens=T, stop=["red", "[eos]"])
    assert _generate._cache_size() == compiled


def test_pictures_come_in_every_form_and_strings_are_text(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = PIL.Image.fromarray(PICTURES[1])
    picture.save("red.png")
    data = io.BytesIO()
    picture.save(data, "PNG")
    forms = [PICTURES[1], picture, Path("red.png"), data.getvalue()]
    scores = model.score([[" the", form, *PROMPTS[2][2:]] for form in forms], CONTINUATIONS)
    assert (scores == scores[:1]).all()
    other = model.score([PROMPTS[0], [" the", PICTURES[2], *PROMPTS[2][2:]], ["no.png", " a"]], CONTINUATIONS)
    assert (other != scores[0]).all()
    with pytest.raises(UserError, match=r"prompt 0 has the text 'red\.png'.*give pathlib\.Path\('red\.png'\)"):
        model.generate([["red.png", " a"]])


def test_a_table_of_prefixes_stands_for_pictures(model):
    table = model.embed_image(PICTURES)
    rows = {id(picture): Image(row) for row, picture in enumerate(PICTURES)}
    by_row = [[rows.get(id(part), part) for part in prompt] for prompt in PROMPTS]
    scores = model.score(PROMPTS, CONTINUATIONS)
    np.testing.assert_array_equal(model.score(by_row, CONTINUATIONS, prefixes=table), scores)
    swapped = model.score(by_row, CONTINUATIONS, prefixes=table[[1, 2, 0]])
    assert (swapped[[0, 2]] != scores[[0, 2]]).all() and (swapped[1] == scores[1]).all()
    with pytest.raises(UserError, match=r"Image\(row=3\), and prefixes has 3 rows"):
        model.generate([[Image(3)]], prefixes=table)


@pytest.mark.parametrize("given", [np.zeros((2, 3), np.float32), np.zeros((1, 2, 3, 4)), [[1.0]], "table"])
def test_what_is_no_table_of_prefixes_is_refused(given):
    with pytest.raises(UserError, match=r"prefixes has the shape .* tables of \[R, 2, 3\]"):
        count_prefixes(given, (2, 3))


@pytest.mark.parametrize("cut", [np.s_[:, :1], np.s_[:, :, 1:], np.s_[:, [0, 1, 1]]])
def test_another_models_table_of_prefixes_is_refused(model, cut):
    """Of another length or width: the words of an answer would not show it."""
    table = model.embed_image(PICTURES)[cut]
    for call in (
        model.generate,
        model.embed_prompts,
        lambda asked, prefixes: model.score(asked, [" a"], prefixes=prefixes),
    ):
        with pytest.raises(UserError, match=r"prefixes has the shape .* make it by this model's embed_image"):
            call([[Image(0)]], prefixes=table)


def test_stop_strings_cut_the_text_and_say_so(model):
    whole = model.complete(PROMPTS, max_new_tokens=T, stop=())
    assert all(not one.stopped and one.new_tokens == T for one in whole)
    letters = [letter for letter in whole[0].text if letter.isascii()]
    marks = [letters[-1], whole[2].text[3:6]]  # a letter, and letters of several tokens
    cut = model.complete(PROMPTS, max_new_tokens=T, stop=["nowhere", *marks])
    for one, other in zip(cut, whole, strict=True):
        ends = [other.text.index(mark) for mark in marks if mark in other.text]
        assert one.text == other.text[: min(ends, default=None)] and one.stopped == bool(ends)
    assert cut[0].new_tokens < T


def test_end_of_text_stops_only_where_it_is_asked_for(model):
    """A language model to which the end of text, id 0, is the most probable word after anything."""
    lm = dict(model.params["lm"])
    table = np.array(lm["embed"]["embedding"])
    table[0] *= 5
    lm["embed"] = {"embedding": table}
    lm["final_norm"] = {"scale": lm["final_norm"]["scale"], "bias": 10 * table[0]}
    ending = dataclasses.replace(model, params={**model.params, "lm": lm})
    assert [tuple(one) for one in ending.complete(PROMPTS, max_new_tokens=T)] == [("", True, 1)] * 3
    assert [tuple(one) for one in ending.complete(PROMPTS, max_new_tokens=T, stop=())] == [("", False, T)] * 3


def test_a_seed_has_32_bits(model):
    with pytest.raises(UserError, match="seed = .* must be one of 32 bits"):
        model.generate(PROMPTS[:1], temperature=1.0, seed=2**32)


def test_sampling_depends_on_the_seed_alone_and_equal_prompts_differ(model):
    def draw(seed):
        return model.generate([PROMPTS[0]] * 3, temperature=2.0, seed=seed, max_new_tokens=T)

    assert draw(1) == draw(1) and draw(1) != draw(2)
    assert len(set(draw(1))) > 1
    assert len(model.generate(PROMPTS, num_beams=2, max_new_tokens=T)) == 3


def test_a_prompt_that_is_too_long_says_how_many_shots_would_fit(model):
    """64 positions: bos, and shots of two slots and " a red patch"."""
    shot = [PICTURES[0], " a red patch"]
    with pytest.raises(
        UserError, match=r"prompt 0 has \d+ positions, 62 of .*has 64 positions: (\d+) of its 30 shots"
    ) as error:
        model.generate([shot * 31], max_new_tokens=T)
    fitting = int(str(error.value).split(" positions: ")[1].split()[0])
    model.generate([shot * (fitting + 1)], max_new_tokens=T)
    with pytest.raises(UserError, match=f"{fitting} of its {fitting + 1} shots"):
        model.generate([shot * (fitting + 2)], max_new_tokens=T)
    with pytest.raises(UserError, match="new tokens are to follow"):
        model.score([shot * (fitting + 2)], [" a red patch at the top"])


def test_an_embedded_text_does_not_depend_on_its_neighbours(model):
    alone = model.embed_text(["a red patch"] * 4)
    beside = model.embed_text(["a", "a red patch", "a red patch" * 3, "a blue patch"])  # padded to another length
    assert alone.shape == (4, 16)
    np.testing.assert_allclose(beside[1], alone[0], rtol=1e-4, atol=1e-5)
    assert np.abs(beside[3] - alone[0]).max() > 0.01


def test_a_blind_model_opens_no_picture(model):
    blind = dataclasses.replace(model, blind=True)
    table = blind.embed_image([Path("nowhere.png"), PICTURES[0]])
    assert table.shape[0] == 2 and (table[0] == table[1]).all()
    scores = blind.score([[" the", Path("nowhere.png"), *PROMPTS[2][2:]], *PROMPTS[:1], PROMPTS[2]], CONTINUATIONS)
    assert (scores[0] == scores[2]).all()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("a red", {}, "prompts is the text 'a red'"),
        (["a red"], {}, r"prompt 0 is the text 'a red'; give a list: \['a red'\]"),
        ([[Path("nowhere.png")]], {}, "nowhere.png"),
        ([["a \udcff"]], {}, r"'a \\udcff' is no text in Unicode"),
        ([[" a"]], {"stop": "\n"}, "stop is '\\\\n'; give a list"),
        ([[" a"]], {"stop": [""]}, "not empty"),
        ([[" a"]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[" a"]], {"temperature": 1.0, "num_beams": 2}, "num_beams"),
    ],
)
def test_wrong_calls_are_named(model, prompts, options, message):
    with pytest.raises(UserError, match=message):
        model.generate(prompts, **options)


def test_one_thing_in_a_list_s_place_is_named(model):
    """A text would be taken letter by letter."""
    with pytest.raises(UserError, match="continuations is the text ' red'"):
        model.score([[" a"]], " red")
    with pytest.raises(UserError, match="texts is the text ' red'"):
        model.embed_text(" red")


@pytest.mark.parametrize(
    "one", ["0.png", Path("0.png"), b"GIF8", np.zeros((16, 16, 3), np.uint8), PIL.Image.new("L", (8, 8))]
)
def test_one_picture_is_no_list_of_pictures(one):
    """Called as it is without types that are checked at run time, as by users."""
    with pytest.raises(UserError, match="pictures is one .*; give a list of pictures"):
        check_pictures(one)
    check_pictures([np.zeros((16, 16, 3), np.uint8), Path("0.png")])
    check_pictures(np.zeros((2, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("wrong", ["0.png", None, 3])
def test_what_is_no_picture_in_a_list_is_named(wrong):
    with pytest.raises(UserError, match="picture 1 is of type"):
        check_pictures([b"GIF8", wrong])


def test_pictures_are_checked_before_they_are_opened(model, monkeypatch):
    def refuse(pictures):
        raise UserError("checked")

    monkeypatch.setattr(api, "check_pictures", refuse)
    for ask in (model.embed_image, model.encode_image):
        with pytest.raises(UserError, match="checked"):
            ask([Path("nowhere.png")])


def test_a_part_that_is_neither_text_nor_picture_is_named():
    with pytest.raises(UserError, match="prompt 4 has a part of type int"):
        name_picture(3, 4)


@pytest.mark.parametrize("continuations", [[], [""], [["a"]], [["a"], ["a", "b"]]])
def test_wrong_continuations_are_named(model, continuations):
    with pytest.raises(UserError, match="score: "):
        model.score([[" a"], [" b"]], continuations)


def test_nothing_to_do_is_no_error(model):
    assert model.generate([]) == [] and model.score([], [" red"]).shape == (0, 1)
    assert model.embed_image([]).shape == (0, 2, 16) and model.embed_text([]).shape == (0, 16)


def test_what_is_no_run_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match=r"no run \(no config\.json\); give the --workdir of a training run"):
        frozen_jax.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no run \(no checkpoints\)"):
        frozen_jax.load(tmp_path)


def test_the_package_imports_jax_only_when_it_is_used():
    code = """
import sys, frozen_jax, frozen_jax.data.worker
assert not {"jax", "flax", "tensorflow"} & set(sys.modules), "heavy"
assert {"load", "load_lm", "Model"} <= set(dir(frozen_jax))
try:
    frozen_jax.lod
except AttributeError as error:
    assert "lod" in str(error)
frozen_jax.Model
assert "jax" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
