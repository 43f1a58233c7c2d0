"""A generator from training to PNG files and figures: the loss by hand, freezing proved, bits twice, helpful errors."""

import dataclasses
import io
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict

from frozen_jax.batch import PAD, Batch
from frozen_jax.build import build_towers
from frozen_jax.config import Config, GeneratorSettings, default_config, from_config_dict, identify
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.flow import scale_pixels, spread_times, weigh
from frozen_jax.language_model import fingerprint_params
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.restore import load
from frozen_jax.run import run
from frozen_jax.sharding_rules import list_sharding_rules
from frozen_jax.state import TrainState, flatten, match_rules, merge, split
from frozen_jax.steps import LossOptions, choose_loss, make_train_step, picture_loss
from frozen_jax.tasks.controls import read_records
from frozen_jax.tasks.generate import _select
from frozen_jax.tools import generate_image
from frozen_jax.tools.generate_image import main, name_files

TEXT = "a red patch at the top"

measure = jax.jit(picture_loss, static_argnums=1, static_argnames="options")


def make_config(tiny_lm) -> ConfigDict:
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.generator.update({"name": "unet", "queries": 2, "width": 16, "channels": (16, 16)})
    config.data.update({"train": "fake:48", "validation": "fake:10", "max_tokens": 40, "bos": True})
    config.data.image.size = 16
    config.optim.learning_rate = 1e-2
    config.train.update({"steps": 4, "batch_size": 8, "log_every": 2, "evaluate_every": 2})
    config.checkpoint.every = 2
    config.mesh.data = 1
    config.evaluate.update({"task": "generate", "batch_size": 8})
    config.evaluate.generate.update({"tags": ("colour", "place"), "reader_steps": 30, "steps": 2})
    return config


@pytest.fixture(scope="module")
def finished(tiny_lm, tmp_path_factory):
    """A finished run, its workdir and its report."""
    config = from_config_dict(make_config(tiny_lm))
    directory = tmp_path_factory.mktemp("generator") / "w"
    return config, directory, run(config, directory, mode="train")


@pytest.fixture(scope="module")
def model(finished):
    return load(finished[1])


@pytest.fixture(scope="module")
def read(model):
    """Function from tokens to conditions."""
    condition = jax.jit(model.network.condition)
    return lambda tokens: condition(model.params, tokens)


def make_batch(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (4, 1, 16, 16, 3), np.uint8)
    tokens = np.array([[0, 5, 7, 0, PAD], [0, 9, 0, PAD, PAD], [0, 5, 5, 5, 0], [0, 5, 0, PAD, PAD]], np.int32)
    mask = (tokens > 0).astype(np.float32)
    mask[3] = 0  # filling
    return Batch(*map(jnp.asarray, (images, tokens, mask, np.arange(4, dtype=np.int32))))


def train_steps(config, towers, count, *, lm_trains):
    """Steps of the real training function with the language model on either side; (before, frozen, state)."""
    params = merge(towers.trainable, towers.frozen)
    rules = list_label_rules(params, lm_trains=lm_trains)
    trainable, frozen = split(params, match_rules(params, rules, what="test"))
    optimiser = make_optimiser(dataclasses.replace(config.optim, clip_norm=1.0, weight_decay=0.1), rules, steps=count)
    step = jax.jit(make_train_step(towers.model, optimiser, accumulate=1, options=LossOptions(condition_drop=0.4)))
    state = TrainState(trainable, optimiser.init(trainable))
    for number in range(count):
        state, metrics = step(state, frozen, make_batch(number), jax.random.key(number))
    assert set(metrics) == {"loss", "grad_norm"} and math.isfinite(metrics["loss"])
    return trainable, frozen, state


@pytest.fixture(scope="module")
def trained(tiny_lm):
    """Three steps with the language model frozen and three with it trainable."""
    config = from_config_dict(make_config(tiny_lm))
    towers = build_towers(config)
    return {lm_trains: train_steps(config, towers, 3, lm_trains=lm_trains) for lm_trains in (False, True)}


def lm_is_unchanged(trainable, frozen, state):
    before, after = merge(trainable, frozen)["lm"], merge(state.trainable, frozen)["lm"]
    return fingerprint_params(before) == fingerprint_params(after)


def optimiser_ignores_lm(trainable, frozen, state):
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert any("generator" in path for path in paths)
    return not any("'lm'" in path for path in paths)


@pytest.mark.parametrize("holds", [lm_is_unchanged, optimiser_ignores_lm])
def test_freezing_holds_and_its_check_can_fail(trained, holds):
    assert holds(*trained[False])
    assert not holds(*trained[True])


def test_every_trainable_leaf_moves_and_all_of_them_are_the_generators(trained):
    """Queries and the vector for no text among them: the gradient reaches the former through the frozen model."""
    before, _, state = trained[False]
    assert list(before) == ["generator"]
    after = flatten(state.trainable)
    assert not [path for path, leaf in flatten(before).items() if np.array_equal(leaf, after[path])]


def test_no_rule_takes_what_it_does_not_name(model):
    """Neither freezing nor sharding has a catch-all that would swallow a misspelt tower or leaf."""
    rules = list_label_rules(model.params, lm_trains=False)
    sharding = list_sharding_rules(model.network, model.params)
    match_rules(model.params, sharding, what="sharding")
    with pytest.raises(UserError, match="no rule covers parameter 'generater/"):
        match_rules({**model.params, "generater": model.params["generator"]}, rules, what="freezing")
    odd = {**model.params, "generator": {**model.params["generator"], "quarries": 0}}
    with pytest.raises(UserError, match="no rule covers parameter 'generator/quarries'"):
        match_rules(odd, sharding, what="sharding")


def test_loss_by_hand(model, read):
    """Error of the named picture, weighed into one of the velocity; the row without a word to predict is filling."""
    batch, network, params = make_batch(), model.network, model.params
    assert choose_loss(network) is picture_loss
    parts = measure(params, network, batch)
    pictures, times = scale_pixels(batch.images[:, 0]), jnp.pad(spread_times(jnp.arange(3) + 0.5, count=3), (0, 1))
    noise = jax.random.normal(jax.random.split(jax.random.key(0), 3)[0], pictures.shape)
    share = times[:, None, None, None]
    denoise = jax.jit(network.denoise)
    named = denoise(params, share * pictures + (1 - share) * noise, times, read(batch.tokens))
    errors = np.asarray(weigh(times)) * np.mean(np.square(named - pictures), axis=(1, 2, 3))
    np.testing.assert_allclose(parts.loss_sum, errors[:3].sum(), rtol=1e-5)
    assert parts.words == 3


def test_filling_takes_no_times_from_evaluation(model, monkeypatch):
    """Of rows cut over devices, too: the two real ones, in whatever places, get the times of a batch of two."""
    seen, batch = [], make_batch()
    mask = jnp.asarray(batch.loss_mask).at[jnp.array([0, 2])].set(0).at[3, 1].set(1)
    batch = batch._replace(loss_mask=mask)
    monkeypatch.setattr("frozen_jax.steps.weigh", lambda times: seen.append(times) or weigh(times))

    def times(batch):
        picture_loss(model.params, model.network, batch)
        return seen.pop()

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    for rows in (batch, cut):
        found = jax.jit(times)(rows)
        np.testing.assert_allclose(found[jnp.array([1, 3])], spread_times(jnp.array([0.5, 1.5]), count=2), rtol=1e-6)


def test_the_condition_is_the_text_and_nothing_else(read):
    """More padding changes nothing; another word does, in its own row alone."""
    tokens = jnp.asarray(make_batch().tokens)
    found = read(tokens)
    assert found.shape == (4, 2, 16)
    np.testing.assert_allclose(read(jnp.pad(tokens, ((0, 0), (0, 3)), constant_values=PAD)), found, atol=1e-5)
    other = read(tokens.at[0, 1].set(6))
    assert jnp.abs(other[0] - found[0]).max() > 1e-3
    np.testing.assert_allclose(other[1:], found[1:], atol=1e-6)


def test_the_language_models_dropout_acts_where_it_trains(model):
    plain, dropped = (
        measure(model.params, model.network, make_batch(), rng=jax.random.key(1), options=LossOptions(lm_dropout=acts))
        for acts in (False, True)
    )
    assert plain.loss_sum != dropped.loss_sum


def test_dropped_texts_are_told_nothing(model):
    """With nearly all texts dropped the gradient of the queries is nearly gone, that of `no_text` is not."""

    def gradient(drop):
        def loss(params):
            rng, options = jax.random.key(1), LossOptions(condition_drop=drop)
            return picture_loss(params, model.network, make_batch(), rng=rng, options=options).loss_sum

        found = jax.jit(jax.grad(loss))(model.params)["generator"]
        return jnp.abs(found["queries"]).max(), jnp.abs(found["no_text"]).max()

    told, untold = gradient(0.0), gradient(0.999999)
    assert told[0] > 0 and told[1] == 0
    assert untold[0] == 0 and untold[1] > 0


def test_same_seed_same_bits(model):
    first = model.draw([TEXT, TEXT, None], steps=2, seed=1)
    assert first.shape == (3, 16, 16, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(model.draw([TEXT, TEXT, None], steps=2, seed=1), first)
    assert not np.array_equal(first[0], first[1]), "the same text in another place has its own noise"
    assert not np.array_equal(model.draw([TEXT, TEXT, None], steps=2, seed=2), first)


def test_draw_refuses(model):
    for texts, options, message in (
        ([" "], {}, "a text is empty"),
        (TEXT, {}, "give a list of texts"),
        (["red " * 70], {}, "room for 62 before the 2 queries"),
        ([TEXT], {"steps": 0}, "steps = 0 must be at least 1"),
        ([TEXT], {"guidance": -1.0}, r"guidance = -1\.0 must not be negative, NaN or over 1000"),
        ([TEXT], {"guidance": math.nan}, "guidance = nan must not be"),
        ([TEXT], {"guidance": 1e39}, r"guidance = 1e\+39 must not be"),  # infinite in float32
        ([TEXT], {"steps": 10_001}, "steps = 10001 must be at least 1 and at most 10000"),
        ([TEXT], {"guidance": math.inf}, "guidance = inf must not be"),
        ([TEXT], {"seed": 2**32}, rf"seed = {2**32} must be .* 0 <= seed < 2\*\*32"),  # whose key is that of 0
        ([TEXT], {"seed": -1}, r"0 <= seed < 2\*\*32"),
    ):
        with pytest.raises(UserError, match=message):
            model.draw(texts, **options)
    without = dataclasses.replace(model, network=dataclasses.replace(model.network, generator=None))
    with pytest.raises(UserError, match="draws no pictures"):
        without.draw([TEXT])


def test_tool_writes_the_same_files_twice_and_never_over_others(finished, tmp_path, capsys):
    command = [f"--workdir={finished[1]}", f"--out={tmp_path / 'pictures'}", "--count=2", "--steps=2"]
    main([*command, TEXT, "a blue patch"])
    names = capsys.readouterr().out.split()
    assert [name.rsplit("/", 1)[1] for name in names] == [
        "a_red_patch_at_the_top_0.png",
        "a_red_patch_at_the_top_1.png",
        "a_blue_patch_0.png",
        "a_blue_patch_1.png",
    ]
    first = [pathlib.Path(name).read_bytes() for name in names]
    assert len(set(first)) == 4 and PIL.Image.open(names[0]).size == (16, 16)
    with pytest.raises(SystemExit):
        main([*command, "a blue patch"])
    assert "a_blue_patch_0.png is there already; name another --out" in capsys.readouterr().err
    main([*command, "--overwrite", TEXT, "a blue patch"])
    assert [pathlib.Path(name).read_bytes() for name in names] == first


def test_tool_errors_are_one_line(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for words, message in (
        ([f"--workdir={tmp_path}", TEXT], "holds no run"),
        ([f"--workdir={finished[1]}", "--count=0", TEXT], "--count=0 must be at least 1"),
        ([f"--workdir={finished[1]}", f"--out={tmp_path}", " "], "say what to draw, for example 'a red circle'"),
        ([f"--workdir={finished[1]}", "red", "red"], "two texts would both be written to red_0.png"),
        ([f"--workdir={finished[1]}", f"--out={tmp_path / 'file'}", TEXT], "cannot be written"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        shown = capsys.readouterr().err
        assert message in shown and shown.startswith("error: ") and shown.count("\n") == 1


def test_all_pictures_are_written_or_none(tmp_path):
    """A name may be taken while they are drawn."""
    (tmp_path / "b.png").write_bytes(b"another's")
    files, pictures = [tmp_path / "a.png", tmp_path / "b.png"], np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match=r"b\.png: is there already"):
        generate_image.write(tmp_path, files, pictures, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]
    generate_image.write(tmp_path, files, pictures, overwrite=True)
    assert (tmp_path / "b.png").stat().st_size > 20 and (tmp_path / "a.png").is_file()


def test_tool_leaves_nothing_behind_when_it_fails(finished, tmp_path, capsys):
    out, workdir = tmp_path / "made" / "pictures", f"--workdir={finished[1]}"
    for words, message in (
        ([f"--workdir={tmp_path}", f"--out={out}", TEXT], "holds no run"),
        ([workdir, f"--out={out}", " "], "say what to draw"),
        ([workdir, f"--out={out}", "--steps=0", TEXT], "steps = 0 must be at least 1"),
        (
            [workdir, f"--out={out}", "--count=1001", TEXT],
            "--count=1001 must be at least 1 and at most 1000",
        ),
        ([workdir, f"--out={out}", "--guidance=nan", TEXT], "guidance = nan must not be"),
        ([workdir, f"--out={out}", f"--seed={2**64}", TEXT], "<= seed < 2**32"),
        ([workdir, f"--out={out}", "red " * 70], "shorten it"),
        ([workdir, f"--out={tmp_path / ('x' * 300)}", TEXT], "File name too long"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        shown = capsys.readouterr().err
        assert message in shown and shown.startswith("error: ") and shown.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_tool_writes_all_pictures_or_none_and_each_whole(finished, tmp_path, monkeypatch, capsys):
    command = [f"--workdir={finished[1]}", f"--out={tmp_path}", "--steps=1", "--overwrite"]
    (tmp_path / "blue_0.png").mkdir()
    with pytest.raises(SystemExit):
        main([*command, "red", "blue"])
    assert "blue_0.png is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["blue_0.png"]
    main([*command, "red"])
    content = (tmp_path / "red_0.png").read_bytes()
    with monkeypatch.context() as broken, pytest.raises(SystemExit):
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        main([*command, "--seed=1", "red"])
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "red_0.png").read_bytes() == content and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_cannot_spell_are_printed_as_escapes(finished, tmp_path, monkeypatch, encoding):
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", shown)
    out = f"{tmp_path}/\udcff"  # a byte that is no UTF-8
    main([f"--workdir={finished[1]}", f"--out={out}", "--steps=1", "été"])
    name = {"utf-8": "été_0.png", "ascii": r"\xe9t\xe9_0.png"}[encoding]
    assert shown.buffer.getvalue().decode(encoding) == f"{tmp_path}/\\udcff/{name}\n"
    assert (pathlib.Path(out) / "été_0.png").exists()


def test_a_picture_that_was_made_meanwhile_stays(finished, tmp_path, monkeypatch, capsys):
    def draw(*words, **options):
        (tmp_path / "red_0.png").write_bytes(b"somebody else's")
        return np.zeros((1, 16, 16, 3), np.uint8)

    monkeypatch.setattr(generate_image, "draw", draw)
    command = [f"--workdir={finished[1]}", f"--out={tmp_path}", "red"]
    with pytest.raises(SystemExit):
        main(command)
    assert "red_0.png: is there already and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "red_0.png").read_bytes() == b"somebody else's" and len(list(tmp_path.iterdir())) == 1
    main([*command, "--overwrite"])
    assert (tmp_path / "red_0.png").read_bytes().startswith(b"\x89PNG")


def test_names_leave_room_for_what_marks_a_file_as_half_written(tmp_path):
    (file,) = name_files(tmp_path, ["圓" * 100], count=1, overwrite=False)
    assert len(file.name.encode()) < 230 and file.name.startswith("圓" * 60)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("generator.patch_size", 3, "patches of the coarsest of 2 grids, 6 pixels long, must fill data.image.size=16"),
        ("generator.channels", (16,), "give at least two grids, each a positive multiple of 16"),
        ("generator.channels", (16, 24), "give at least two grids, each a positive multiple of 16"),
        ("generator.width", 0, "it must be at least 1"),
        ("generator.queries", 0, "it must be at least 1"),
        ("generator.condition_drop", 1.0, "guidance has nothing to compare with"),
        ("vision.name", "vit", "has no use for this; set it to ''"),
        ("data.pack", 2, "has no use for this; set it to 1"),
        ("evaluate.blind_control", True, "has no use for this; set it to False"),
        ("data.caption_prompt", " Draw:", r"caption_prompt is ' Draw:'; generator\.name .* data\.caption_format"),
        ("evaluate.task", "caption", "only a generator draws pictures, and it does nothing else"),
        ("evaluate.generate.guidance", -1.0, "it must not be negative"),
        ("evaluate.generate.steps", 0, "it must be at least 1"),
    ],
)
def test_config_errors(tiny_lm, name, value, message):
    config = make_config(tiny_lm)
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=message):
        from_config_dict(config)


def test_queries_that_do_not_fit_the_positions(tiny_lm):
    config = make_config(tiny_lm)
    config.generator.queries = 30
    with pytest.raises(UserError, match="queries is 30, behind texts of up to 40 tokens, and .* has 64 positions"):
        build_towers(from_config_dict(config))


def test_a_run_without_a_generator_is_still_the_run_that_it_was():
    config = Config()
    assert "generator" not in identify(config)
    assert "generator" in identify(dataclasses.replace(config, generator=GeneratorSettings(name="unet")))


def test_report_has_every_view_with_its_controls(finished):
    """Of an untrained generator: figures are there, and the reader reads real pictures better than drawn ones."""
    _, directory, report = finished
    figures = report["generate"]
    assert figures["n"] == 10 and figures["source"] == "fake:10" and figures["text"].startswith("a ")
    for name in ("seeing", "shuffled", "blind", "real"):
        assert all(0 <= figures[name][tag] <= 100 for tag in ("colour", "place", "accuracy")), name
    assert figures["real"]["accuracy"] > figures["seeing"]["accuracy"]
    assert figures["real"]["frechet"] < figures["seeing"]["frechet"]
    # The validation records of this synthetic source are training records too, and left out of them here.
    assert figures["seeing"]["nearest_train_rms"] > figures["real"]["nearest_train_rms"] > 1
    assert figures["reader"].endswith("trained on 38 real pictures")
    assert 0 < figures["chance"] < 50
    cost = report["evaluation"]  # of pictures drawn of texts and without; no prompt is asked
    assert cost["examples"] == 20 and cost["examples_per_s"] > 0 and "flops_per_example" not in cost
    assert report["frozen"]["lm_sha256_before"] == report["frozen"]["lm_sha256_after"]
    for name in ("generated.png", "neighbours.png", "report.html"):
        assert (directory / name).stat().st_size > 1000


def naming(config, *tags):
    generate = dataclasses.replace(config.evaluate.generate, tags=tags)
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, generate=generate))


def test_only_the_named_places_are_read(finished):
    """A synthetic record's tags are colour and place."""
    config, *_ = finished
    for names in ((), ("colour",), ("colour", "place")):
        records = read_records(open_source("fake:10"), most=10, data=config.data)
        kept = _select(records, naming(config, *names), "fake:10")
        whole = [open_source("fake:10").record(number).tags for number in range(10)]
        assert [record.tags for record in kept] == [tags[: len(names)] for tags in whole]


def test_records_without_the_named_tags_are_refused(finished):
    config, directory, _ = finished
    with pytest.raises(UserError, match="0 of the 10 records of fake:10 have a caption and tags at the places"):
        run(naming(config, "colour", "place", "size"), directory, mode="eval")
