"""BERT against transformers, its files of two generations, and its tokenizer's marks."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from frozen_jax.convert.lm_weights import export_lm, import_lm
from frozen_jax.errors import UserError
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.masks import causal_mask, positions_from_mask
from frozen_jax.tokenizer import Tokenizer

TINY = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}


@pytest.fixture(scope="module")
def torch_bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(**{name: value for name, value in TINY.items() if name != "model_type"})
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("generation", ["today", "2018"])
def test_states_are_those_of_transformers(torch_bert: Any, generation: str) -> None:
    """Rows padded on the right and on the left; a padded position is seen by no other."""
    tensors = {name: tensor.numpy() for name, tensor in torch_bert.state_dict().items()}
    if generation == "2018":  # names as in bert-base-uncased's file
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, before in old.items():
            tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        tensors["cls.predictions.bias"] = np.zeros(TINY["vocab_size"], np.float32)
    config = lm_config_from_hf(TINY)
    params = import_lm(config, tensors, dtype=np.float32)
    tokens = np.random.default_rng(0).integers(1, 40, (3, 9)).astype(np.int32)
    mask = np.ones((3, 9), bool)
    mask[1, 6:], mask[2, :4] = False, False
    positions = positions_from_mask(jnp.asarray(mask))
    with torch.no_grad():
        expected = torch_bert(
            torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(np.array(positions)).long(),
        ).last_hidden_state.numpy()
    module = build_lm(config)
    embeddings = jnp.asarray(params["embed"]["embedding"][tokens])
    states, cache = module.apply(
        {"params": params}, embeddings, positions=positions, mask=causal_mask(jnp.asarray(mask)), method="stack"
    )
    assert cache is None
    np.testing.assert_allclose(np.asarray(states)[mask], expected[mask], atol=2e-5, rtol=0)
    declared = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), np.int32))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, declared) == jax.tree.map(lambda leaf: leaf.shape, params)
    written = export_lm(config, params)
    again = import_lm(config, written, dtype=np.float32)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
    ],
)
def test_other_kinds_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lm_config_from_hf({**TINY, **change})


def test_its_marks_begin_and_end_a_text(tmp_path: Any) -> None:
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "circle"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.save(str(tmp_path / "tokenizer.json"))
    stated = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
    assert tokenizer.encode("red circle") == [4, 5]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**stated, "bos_token": None, "eos_token": "red"}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 4)
