"""What the benchmarks rest on: the torch counterpart computes the same, and a frozen step costs what it should."""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import (
    applications_table,
    common,
    nf_resnet_stability,
    recipes_plots,
    results_table,
    scaling,
    torch_peer,
)
from benchmarks.train_step import count_operations
from frozen_jax.build import resolve_path
from frozen_jax.config import from_config_dict, to_dict
from frozen_jax.config_file import read_config
from frozen_jax.data.easy_vqa import EasyQuestion, EasyVQA, infer_scene
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.language_model import load_lm
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
from frozen_jax.prompt import Image, fill
from frozen_jax.steps import loss_fn
from frozen_jax.tasks.retrieval import order_questions


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2},
        {"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32},
    ],
    ids=["gpt2", "opt"],
)
def test_torch_peer_has_our_loss_and_gradient(architecture):
    lm = build_lm(lm_config_from_hf({**architecture, "vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}))
    vision = build_vision("nf_resnet_small", widths=(8,), depths=(1,), stem_width=8, bottleneck=True)
    model = FrozenModel(lm, vision, Prefix(2, 16, embedding_rms=0.02))
    options = argparse.Namespace(batch=3, slots=2, words=5, image_size=16)
    params = common.draw_params(common.describe_params(model, image_size=16, dtype=jnp.float32))
    # The prefix has to be seen for the comparison to mean anything.
    params["prefix"]["projection"]["kernel"] *= 100
    batch = common.draw_batch(options, 40)

    def mean_loss(trainable):
        parts = loss_fn({**params, **trainable}, model, batch)
        return parts.loss_sum / parts.words

    trainable = {tower: params[tower] for tower in ("vision", "prefix")}
    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(trainable)
    peer = torch_peer.TorchFrozen(
        torch_peer.TorchNFResNet(params["vision"], vision, torch.float32),
        params["prefix"]["projection"],
        torch_peer.torch_lm(lm.config, params["lm"], dtype=torch.float32),
        slots=2,
    )
    theirs = peer(torch.tensor(batch.images[:, 0]), torch.tensor(batch.tokens[:, 2:]).long())
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    expected = peer.kernel.grad.numpy()
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(gradient["prefix"]["projection"]["kernel"], expected, atol=1e-4 * np.abs(expected).max())
    assert all(parameter.grad is None for parameter in peer.lm.parameters())


@pytest.mark.parametrize("lm, most", [("gpt2", 0.85), ("opt-6.7b", 0.69)])
def test_operations_that_freezing_saves(lm, most):
    """Of a step at 224 px with 2 slots and 32 words, relative to training everything."""
    options = argparse.Namespace(lm=lm, dtype="bfloat16", slots=2, words=32, batch=8, image_size=224)
    options.analytic_only = True
    rows = count_operations(options)
    assert 0.5 < rows["analytic_frozen_to_full"] <= most


def test_variants_take_turns_and_the_median_counts(monkeypatch):
    calls, clock = [], iter(np.cumsum([0, 1, 0, 10, 0, 3, 0, 30, 0, 2, 0, 20]))
    monkeypatch.setattr(common.time, "process_time", lambda: float(next(clock)))
    variants = {name: functools.partial(calls.append, name) for name in ("ours", "peer")}
    assert common.measure(variants, rounds=3) == {"ours": 2.0, "peer": 20.0}
    assert calls == ["ours", "peer"] * 4


def test_who_understands_a_dialogue_draws_among_the_pictures_that_do_not_contradict_it():
    """Counted again: what each picture shows is said after the dialogue, and a contradiction is refused."""
    settings = {"source": "easy_vqa:test", "turns": (1, 3)}
    config = from_config_dict(
        {
            "lm": {"path": "x"},
            "vision": {"name": "vit"},
            "data": {"train": "-"},
            "evaluate": {"examples": 60, "retrieval": settings},
        }
    )
    found = applications_table.read_dialogues(config)
    source = open_source("easy_vqa:test")
    records = [source.record(index) for index in range(60)]
    for turns, share in found.items():
        shares = []
        for row, record in enumerate(records):
            told = [EasyQuestion(q.text, q.answers[0], 0) for q in order_questions(record, row, seed=0)]
            if len(told) >= turns:
                fitting = [other.tags for other in records if _agrees(told[:turns], other.tags)]
                shares.append(fitting.count(record.tags) / len(fitting))
        assert share == pytest.approx(100 * np.mean(shares))
    assert 0 < found[1] < found[3] < 100


def _agrees(told, tags):
    try:
        infer_scene([*told, *(EasyQuestion(f"is there a {tag}?", "yes", 0) for tag in tags)])
    except UserError:
        return False
    return True


def test_an_emojis_class_is_its_answer_and_its_tags_are_its_keywords(tmp_path, monkeypatch):
    row = {"image": "a.png", "tags": ["Smileys & Emotion", "face", "grin"], "answer": "smileys & emotion"}
    for split in ("heldout", "train"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(applications_table, "EMOJI", tmp_path)
    for name, split in (("HELD_OUT", "heldout"), ("LEARNT", "train")):
        monkeypatch.setitem(getattr(applications_table, name), "emoji", f"jsonl:{tmp_path}/{split}.jsonl")
    (tmp_path / "out").mkdir()
    for application, tags in (("classes", ("smileys & emotion",)), ("tags", ("face", "grin"))):
        for line in applications_table.list_pictures("emoji", application, out=tmp_path / "out"):
            record = open_source(line).record(0)
            assert (record.tags, record.image) == (tags, tmp_path / "a.png")
    stamps = applications_table.list_pictures("stamps", "tags", out=tmp_path)
    assert stamps == tuple(f"jsonl:data/fetched/stamps/{split}.jsonl" for split in ("heldout", "train"))


def test_runs_of_several_seeds_are_one_line():
    def run(score, shuffled):
        line = applications_table.Line("2 classes", "name", "top-1", score, shuffled, "ECE 1.0", chance=50.0)
        return [line, line._replace(by="probe", shuffled=None)]

    first, probe = applications_table.summarise([run(80.0, 40.0), run(90.0, 60.0)])
    assert (first["score"], first["shuffled"], first["by_seed"]) == (85.0, 50.0, [80.0, 90.0])
    assert first["spread"] == pytest.approx(7.07) and probe["shuffled"] is None
    table = applications_table.show([first, probe])
    assert "85.0 ± 7.1" in table and "50.0" in table


def test_results_are_means_over_seeds_and_say_where_nothing_was_measured():
    reports = [
        {"caption": {"seeing": {"nats_per_token": loss, "noun": 10.0 * loss}, "majority": {"noun": 0.5}}}
        for loss in (3.0, 3.2)
    ]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in results_table.draw_table({"report": reports}, [0, 1]).splitlines()
    ]
    assert ["stamps: loss of the caption's tokens, nats", "3.1 ± 0.14", "", "", "", ""] in lines
    assert ["stamps: noun, synonym or direct hypernym named", "31.0 ± 1.4", "", "", "", "0.5"] in lines
    assert not any(line[0].startswith("emoji") for line in lines), "not measured, not shown"


def test_curves_of_seeds_meet_at_the_steps_that_all_have(tmp_path):
    written = ['{"step": 2, "kind": "train", "loss": 1.5}', '{"step": 2, "kind": "validation", "loss": 9}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*written, '{"step": 4, "kind": "train", "loss": 0.5}']))
    first = recipes_plots.read_losses(tmp_path, "train")
    assert first == {2: 1.5, 4: 0.5}
    steps, losses = recipes_plots.join_curves([first, {4: 0.75, 6: 0.0}])
    assert steps == [4] and losses.tolist() == [[0.5], [0.75]]


def test_a_change_leaves_its_neighbours_alone():
    given = {"lm": {"path": "x"}, "vision": {"name": "y"}, "data": {"train": "fake:8", "augment": {"flip": True}}}
    changed = common.change(from_config_dict(given), {"data": {"augment": {"shift": 0.1}}, "seed": 3})
    assert changed.data.train == "fake:8" and changed.seed == 3
    assert (changed.data.augment.flip, changed.data.augment.shift) == (True, 0.1)


@pytest.mark.parametrize("plan", [scaling.plan_vqa, scaling.plan_binding])
def test_sizes_differ_in_nothing_but_the_language_model(plan, tmp_path):
    options = argparse.Namespace(out=tmp_path, text_steps=7, vision_steps=5, examples=2)
    small, large = (plan(options, size) for size in scaling.read_sizes("16x2,64x4"))
    for stage, steps in (("text", 7), ("vision", 5)):
        first, second = to_dict(small[stage]), to_dict(large[stage])
        assert first.pop("lm") != second.pop("lm") and first == second
        assert first["train"]["steps"] == steps and first["train"]["patience"] == 0
    assert small["vision"].lm.path == f"{tmp_path}/16x2/text/lm"


def test_prompts_of_all_shots_stand_where_training_had_pairs(tmp_path):
    """And are worded as there: a shot's answer ends with the token that ends a pair."""
    options = argparse.Namespace(out=tmp_path, text_steps=1, vision_steps=1, examples=2)
    text = scaling.plan_vqa(options, scaling.Size(16, 2))["text"]
    tokenizer = load_lm(resolve_path("package:scene_gpt2")).tokenizer
    questions = {q.question: q.answer for q in EasyVQA("test").questions}
    asked = [fill(scaling.ASKED["shot_format"], Image(0), question=q, answer=a) for q, a in questions.items()]
    assert tokenizer.encode(asked[0][-1])[-1] == tokenizer.eos_id
    longest = max(len(tokenizer.encode(words)) for _, words in asked) + 2
    assert (max(scaling.SHOTS) + 1) * longest + 1 <= 2 * text.data.max_tokens


def test_a_size_that_the_heads_do_not_divide_is_none():
    assert [str(size) for size in scaling.read_sizes("16x2,64x4")] == ["16x2", "64x4"]
    with pytest.raises(ValueError, match="18x2"):
        scaling.read_sizes("18x2")


@pytest.mark.parametrize("part", ["vqa", "binding"])
def test_sizes_are_drawn(part, tmp_path):
    line = dict.fromkeys(scaling.COLUMNS[part], 50.0)
    lines = [{**line, "size": size, "parameters": count} for size, count in (("64x4", 240_000), ("16x2", 16_000))]
    scaling.draw(scaling.PANELS[part], lines, tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_went_wrong_can_be_drawn(tmp_path):
    curves = {"float32": ([2.0, 1.0, 0.5], [80.0, 8.0, 0.8]), "bfloat16": ([2.0, float("nan")], [80.0, float("inf")])}
    nf_resnet_stability.draw(curves, tmp_path / "loss.png", rate=3e-4)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_another_config_file_takes_the_place_of_a_scripts_own():
    words = ["--config=configs/debug_tiny.py", "--config.train.steps=7"]
    config = read_config(common.replace_flags([*recipes_plots.SHORT, "--config.train.steps=5"], words))
    assert (config.train.steps, config.optim.warmup_steps) == (7, 20)
    assert config.data.train == read_config(words[:1]).data.train
