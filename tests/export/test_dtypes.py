"""Exports of bfloat16 runs: published weights are rounded as the run rounded them, what was learnt is not."""

import dataclasses

import jax
import numpy as np
import pytest

import frozen_jax
from frozen_jax.errors import UserError
from frozen_jax.export.layout import DIGESTS
from frozen_jax.export.read import load_export
from frozen_jax.export.write import widen
from frozen_jax.language_model import load_lm
from frozen_jax.restore import load_run
from frozen_jax.state import flatten
from frozen_jax.tools import export as tool
from tests.export.cases import describe, same, save_run


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    """Which computes in float32, and is compared elsewhere."""
    monkeypatch.setattr(tool, "has_torch", lambda: False)


def test_without_the_language_model_of_a_bfloat16_run_the_published_one_is_named(tiny_lm, tmp_path):
    """It is stored in float32, and rounds to what the run computed with."""
    config = describe(tiny_lm)
    config.lm.dtype = "bfloat16"
    save_run(config, tmp_path / "w")
    assert "every parameter bit for bit" in tool.export(tmp_path / "w", tmp_path / "out", with_lm=False)
    trained = load_run(tmp_path / "w")
    back = frozen_jax.load(tmp_path / "out")
    assert same(back.params, trained.params) and back.network == trained.network
    assert same(load_export(tmp_path / "out", dtype_name="float32").params["lm"], load_lm(tiny_lm).params)
    (tmp_path / "out" / DIGESTS).unlink()  # as transformers writes it, perhaps after training there
    assert same(frozen_jax.load(tmp_path / "out").params["lm"], load_lm(tiny_lm).params)
    lm = jax.tree.map(lambda leaf: leaf + 1, trained.params["lm"])
    with pytest.raises(UserError, match="is not the one that this run was trained with"):
        widen(dataclasses.replace(trained, params={**trained.params, "lm": lm}), lm_path=str(tiny_lm))


@pytest.mark.parametrize("settings", [{"lora_rank": 2}, {"lora_rank": 2, "weights": "int8"}, {"mode": "finetuned"}])
def test_what_was_learnt_is_loaded_as_it_was_exported(tiny_lm, tmp_path, settings):
    """A small change of a bfloat16 kernel rounds back to the kernel."""
    config = describe(tiny_lm)
    config.lm.update({"dtype": "bfloat16", **settings})
    save_run(config, tmp_path / "w", fill=True)
    tool.export(tmp_path / "w", tmp_path / "out")
    exact = flatten(widen(load_run(tmp_path / "w")).params)
    back = flatten(frozen_jax.load(tmp_path / "out").params)
    assert {leaf.dtype for leaf in back.values()} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, back, exact)
