"""What the benchmarks rest on: the torch counterpart computes the same, and a frozen step costs what it should."""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import applications_table, common, recipes_plots, results_table, torch_peer
from benchmarks.train_step import count_operations
from frozen_jax.config import from_config_dict
from frozen_jax.data.easy_vqa import EasyQuestion, infer_scene
from frozen_jax.data.sources import open_source
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
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
    assert ["stamps: loss of the caption's tokens, nats", "3.1 ± 0.14", "", "", ""] in lines
    assert ["stamps: noun, synonym or direct hypernym named", "31.0 ± 1.4", "", "", "0.5"] in lines
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
    changed = recipes_plots.change(from_config_dict(given), {"data": {"augment": {"shift": 0.1}}, "seed": 3})
    assert changed.data.train == "fake:8" and changed.seed == 3
    assert (changed.data.augment.flip, changed.data.augment.shift) == (True, 0.1)
