"""Decoding against slow references: full forward passes, hand-computed chains, transformers' generate."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax import decode
from frozen_jax.batch import PAD
from frozen_jax.convert.lm_weights import import_lm
from frozen_jax.decode import DecodeConfig, generate
from frozen_jax.errors import UserError
from frozen_jax.models.lm import build_lm, lm_config_from_hf

VOCAB = 61
STEPS = 6
LENGTHS = (5, 2, 1, 4)  # one shape of prompts for most tests: compiling is what takes the time here


@functools.cache
def make_lm(seed: int, dtype: str = "float32") -> tuple[Any, Any]:
    """A random two-layer GPT-2, with embeddings large enough that its continuations vary."""
    fields = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCAB, "n_positions": 32}
    config = lm_config_from_hf({"model_type": "gpt2", **fields})
    shapes = jax.eval_shape(build_lm(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        values = rng.normal(size=leaf.shape) * (0.1 if name in ("scale", "bias") else 0.5)
        return jnp.asarray(values + (name == "scale"), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return build_lm(config, dtype=jnp.dtype(dtype)), params


def make_prompts(seed: int, lengths: tuple[int, ...] = LENGTHS) -> tuple[np.ndarray, np.ndarray]:
    """Random embeddings (as of image prefixes) for left-padded prompts of the given lengths; noise at the padding."""
    width = max(lengths)
    embeddings = np.random.default_rng(seed).normal(size=(len(lengths), width, 16)).astype(np.float32)
    mask = np.arange(width)[None, :] >= width - np.array(lengths)[:, None]
    return embeddings, mask


@functools.partial(jax.jit, static_argnums=0)
def run_full_forward(module: Any, params: Any, text: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [S, V] of one text [S, D] without a cache, and the embeddings [V, D] of all words."""
    size = text.shape[0]
    hidden, _ = module.apply(
        {"params": params},
        text[None],
        positions=jnp.arange(size, dtype=jnp.int32)[None],
        mask=jnp.tril(jnp.ones((size, size), bool))[None],
        method="stack",
    )
    words = module.apply({"params": params}, jnp.arange(VOCAB, dtype=jnp.int32)[None], method="embed")[0]
    return module.apply({"params": params}, hidden, method="logits")[0].astype(jnp.float32), words


def next_logits(module: Any, params: Any, prompt: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Logits after one unpadded prompt and further tokens. What follows in the buffer is noise that causality hides."""
    buffer = np.full((32, prompt.shape[1]), 7.0, np.float32)
    buffer[: len(prompt)] = prompt
    _, words = run_full_forward(module, params, jnp.asarray(buffer))
    end = len(prompt) + len(tokens)
    buffer[len(prompt) : end] = words[np.array(tokens, int)]
    return np.asarray(run_full_forward(module, params, jnp.asarray(buffer))[0][end - 1])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def decode_slowly(
    module: Any, params: Any, embeddings: np.ndarray, steps: int, stop_ids: tuple[int, ...] = ()
) -> tuple[list[int], float]:
    """Greedy decoding of one unpadded prompt, each token from a full forward pass."""
    tokens: list[int] = []
    score = 0.0
    while len(tokens) < steps and not set(tokens) & set(stop_ids):
        logits = next_logits(module, params, embeddings, tokens)
        tokens.append(int(logits.argmax()))
        score += log_softmax(logits)[tokens[-1]]
    return tokens, score


class MarkovLM:
    """A language model whose next token depends on the last one alone: everything can be computed by hand.

    `embed` is one-hot, `stack` hands through, `logits` looks the log of the transition table up in `params`.
    """

    def __init__(self, vocab: int) -> None:
        config = make_lm(0)[0].config
        self.config = dataclasses.replace(config, vocab_size=vocab, max_positions=10_000)
        self.dtype = jnp.float32
        self.unroll = 0
        self.vocab = vocab

    def clone(self, *, unroll: int) -> MarkovLM:
        return self

    def apply(self, variables: dict[str, Any], x: jax.Array, *, method: str, cache: Any = None, **_: Any) -> Any:
        if method == "embed":
            return jax.nn.one_hot(x, self.vocab)
        return (x, cache) if method == "stack" else jnp.log(x @ variables["params"]["table"])


make_markov = functools.cache(MarkovLM)  # one module per size, for one compilation per config


def run_markov(table: Any, config: DecodeConfig, *, rows: int = 1, rng: Any = None) -> decode.Generated:
    """Generates from a prompt that is token 0, for `rows` equal rows."""
    table = jnp.asarray(table, jnp.float32)
    prompt = jnp.zeros((rows, 1, len(table))).at[:, :, 0].set(1.0)
    return generate(make_markov(len(table)), {"table": table}, prompt, np.ones((rows, 1), bool), config=config, rng=rng)


# --- greedy


@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_full_forward_passes(seed: int) -> None:
    module, params = make_lm(seed)
    embeddings, mask = make_prompts(seed)
    result = generate(module, params, embeddings, mask, config=DecodeConfig(STEPS))
    for row, length in enumerate(LENGTHS):
        tokens, score = decode_slowly(module, params, embeddings[row, -length:], STEPS)
        assert result.tokens[row].tolist() == tokens
        assert result.lengths[row] == STEPS
        np.testing.assert_allclose(result.scores[row], score, rtol=1e-5, atol=1e-5)
    assert len(set(result.tokens[0].tolist())) > 1  # a constant continuation would prove little


def test_a_row_ends_at_its_stop_token_and_the_others_go_on() -> None:
    module, params = make_lm(1)
    embeddings, mask = make_prompts(1)
    free = np.asarray(generate(module, params, embeddings, mask, config=DecodeConfig(STEPS)).tokens)
    stop_ids = (int(free[0, 0]), int(free[1, 2]))
    result = generate(module, params, embeddings, mask, config=DecodeConfig(STEPS, stop_ids=stop_ids, pad_id=60))
    ends = set()
    for row, length in enumerate(LENGTHS):
        tokens, score = decode_slowly(module, params, embeddings[row, -length:], STEPS, stop_ids)
        assert result.tokens[row].tolist() == tokens + [60] * (STEPS - len(tokens))
        assert result.lengths[row] == len(tokens)
        np.testing.assert_allclose(result.scores[row], score, rtol=1e-5, atol=1e-5)
        ends.add(len(tokens))
    assert 1 in ends and len(ends) > 1


def test_loop_ends_as_soon_as_all_rows_have() -> None:
    """0 → 1 → 2 and 2 stops: after that the model is not called again (its poisoned row 2 is never read)."""
    table = np.eye(4)[[1, 2, 3, 0]]
    calls: list[int] = []

    class Counting(MarkovLM):
        def apply(self, variables: Any, x: jax.Array, *, method: str, **options: Any) -> Any:
            if method == "logits":
                jax.debug.callback(lambda: calls.append(1))
            return super().apply(variables, x, method=method, **options)

    prompt = jnp.zeros((2, 1, 4)).at[:, :, 0].set(1.0)
    config = DecodeConfig(50, stop_ids=(2,))
    params = {"table": jnp.asarray(table, jnp.float32)}
    result = generate(Counting(4), params, prompt, np.ones((2, 1), bool), config=config)
    jax.effects_barrier()
    assert result.tokens[:, :3].tolist() == [[1, 2, PAD]] * 2
    assert result.lengths.tolist() == [2, 2]
    assert len(calls) == 2


def test_left_padding_and_batching_change_nothing() -> None:
    module, params = make_lm(2)
    embeddings, mask = make_prompts(3)
    config = DecodeConfig(STEPS, num_beams=2)
    batched = generate(module, params, embeddings, mask, config=config)
    alone = generate(module, params, embeddings[1:2, -2:], mask[1:2, -2:], config=config)  # row 1 holds two positions
    assert batched.tokens[1].tolist() == alone.tokens[0].tolist()
    np.testing.assert_allclose(batched.scores[1], alone.scores[0], rtol=1e-5)
    other = np.where(mask[:, :, None], embeddings, 9.0).astype(np.float32)
    np.testing.assert_array_equal(
        generate(module, params, other, mask, config=DecodeConfig(STEPS)).scores,
        generate(module, params, embeddings, mask, config=DecodeConfig(STEPS)).scores,
    )


def test_works_inside_jit() -> None:
    embeddings, mask = make_prompts(0)
    module, params = make_lm(0)
    config = DecodeConfig(STEPS)
    inside = jax.jit(lambda p, e, m: generate(module, p, e, m, config=config))(params, embeddings, mask)
    np.testing.assert_array_equal(inside.tokens, generate(module, params, embeddings, mask, config=config).tokens)


def test_preparing_takes_the_layers_apart_once() -> None:
    module, params = make_lm(0)
    prepared, apart = decode.prepare_decoding(module, params)
    for path, stacked in jax.tree_util.tree_leaves_with_path(params["blocks"]):
        layers = functools.reduce(lambda tree, key: tree[key.key], path, apart["blocks"])
        assert isinstance(layers, list)
        np.testing.assert_array_equal(layers, stacked)
    assert decode.prepare_decoding(prepared, apart) == (prepared, apart)
    config = DecodeConfig(STEPS)
    generated = generate(prepared, apart, *make_prompts(0), config=config)
    np.testing.assert_array_equal(generated.tokens, generate(module, params, *make_prompts(0), config=config).tokens)


def test_bfloat16_scores_are_those_of_float32_up_to_rounding() -> None:
    """Beams in bfloat16 may choose otherwise than in float32; the text that they chose has the score that they say."""
    embeddings, mask = make_prompts(0)
    result = generate(*make_lm(0, "bfloat16"), embeddings, mask, config=DecodeConfig(STEPS, num_beams=2))
    assert result.scores.dtype == jnp.float32
    module, params = make_lm(0)
    for row, length in enumerate(LENGTHS):
        score, tokens = 0.0, result.tokens[row].tolist()
        for step, token in enumerate(tokens):
            score += log_softmax(next_logits(module, params, embeddings[row, -length:], tokens[:step]))[token]
        np.testing.assert_allclose(result.scores[row], score, rtol=0.02, atol=0.05)


# --- beams


def test_beam_search_finds_what_greedy_misses() -> None:
    """From 0: to 1 with 0.6, to 2 with 0.4. After 1 all is even (1/3 each); after 2 comes 3 with 0.9.

    Greedy: 0.6 x 1/3 = 0.2. Two beams: 0.4 x 0.9 = 0.36.
    """
    third = 1 / 3
    table = [[0, 0.6, 0.4, 0], [0, third, third, third], [0, 0.05, 0.05, 0.9], [0, 0, 0, 1]]
    greedy = run_markov(table, DecodeConfig(2))
    assert greedy.tokens.tolist() == [[1, 1]]
    np.testing.assert_allclose(greedy.scores, [np.log(0.2)], rtol=1e-5)
    beam = run_markov(table, DecodeConfig(2, num_beams=2), rows=2)
    assert beam.tokens.tolist() == [[2, 3]] * 2
    np.testing.assert_allclose(beam.scores, [np.log(0.36)] * 2, rtol=1e-5)


def test_length_penalty_prefers_long_or_short_texts() -> None:
    """Stopping at once (token 3) has 0.5; going on is 0.5 x 0.8 x 0.8 = 0.32 for three tokens.

    Sums: log 0.5 = -0.69 against -1.14. Per token (penalty 1): -0.69 against -0.38.
    """
    table = [[0, 0.5, 0, 0.5], [0, 0, 0.8, 0.2], [0, 0.2, 0, 0.8], [0, 0, 0, 1]]
    short = run_markov(table, DecodeConfig(4, num_beams=3, length_penalty=0.0, stop_ids=(3,)))
    assert short.tokens.tolist() == [[3, PAD, PAD, PAD]]
    assert short.lengths.tolist() == [1]
    np.testing.assert_allclose(short.scores, [np.log(0.5)], rtol=1e-5)
    long = run_markov(table, DecodeConfig(4, num_beams=3, length_penalty=1.0, stop_ids=(3,)))
    assert long.tokens.tolist() == [[1, 2, 3, PAD]]
    assert long.lengths.tolist() == [3]
    np.testing.assert_allclose(long.scores, [np.log(0.32)], rtol=1e-5)


def test_more_beams_than_tokens_and_an_extreme_penalty() -> None:
    """Beams that cannot exist (8 beams, 2 tokens) never win, whatever the penalty does to their placeholder score."""
    table = [[0.25, 0.75], [0.5, 0.5]]
    for penalty in (-20.0, 20.0):
        config = DecodeConfig(2, num_beams=8, length_penalty=penalty, stop_ids=(0,))
        result = run_markov(table, config)
        assert result.scores[0] > -3
        assert result.tokens.tolist() == ([[0, PAD]] if penalty < 0 else [[1, 0]])


@pytest.mark.parametrize("stop_ids", [(), (7, 11)])
def test_one_beam_is_greedy(stop_ids: tuple[int, ...]) -> None:
    """The beam step itself, which `generate` leaves aside for one beam, driven by full forward passes."""
    module, params = make_lm(3)
    embeddings, mask = make_prompts(5)
    config = DecodeConfig(STEPS, stop_ids=stop_ids)
    greedy = generate(module, params, embeddings, mask, config=config)

    stops = jnp.array(stop_ids or (decode.NO_TOKEN,), jnp.int32)
    choose = jax.jit(functools.partial(decode._choose_beams, config=config, stops=stops))
    state = decode._start_beams(len(LENGTHS), config)
    for step in range(STEPS):
        texts = np.asarray(state.tokens)[:, 0, :step].tolist()
        logits = [next_logits(module, params, embeddings[r, -n:], texts[r]) for r, n in enumerate(LENGTHS)]
        state = choose(state, jnp.asarray(np.stack(logits)), jnp.int32(step))
    np.testing.assert_array_equal(state.ended_tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(state.ended_lengths[:, 0], greedy.lengths)
    np.testing.assert_allclose(state.ended_sums[:, 0], greedy.scores, rtol=1e-5)


# --- sampling


def test_sampling_follows_the_model_distribution() -> None:
    """Chi-square of 4,000 draws against softmax(logits / 2); with 6 degrees of freedom 99.9 % are below 22.5."""
    p = np.array([0.02, 0.3, 0.1, 0.25, 0.05, 0.2, 0.08])
    expected = p**0.5 / (p**0.5).sum() * 4000
    result = run_markov(np.tile(p, (7, 1)), DecodeConfig(1, temperature=2.0), rows=4000, rng=jax.random.key(0))
    counts = np.bincount(np.asarray(result.tokens[:, 0]), minlength=7)
    assert ((counts - expected) ** 2 / expected).sum() < 22.5
    np.testing.assert_allclose(result.scores, np.log(p)[np.asarray(result.tokens[:, 0])], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 3}, [1, 3, 5]),
        ({"top_p": 0.5}, [1, 3]),  # 0.3 alone is less than 0.5, with 0.25 it is more
        ({"top_p": 0.56}, [1, 3, 5]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # 0.55 of the 0.75 that top_k left is 0.73
        ({"top_k": 100}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_top_k_and_top_p_cut_and_renormalise(options: dict[str, Any], kept: list[int]) -> None:
    p = np.array([0.02, 0.3, 0.1, 0.25, 0.05, 0.2, 0.08])
    config = DecodeConfig(1, temperature=1.0, **options)
    logits = jnp.log(jnp.asarray(np.tile(p, (4000, 1)), jnp.float32))
    drawn = jax.jit(decode._sample, static_argnums=2)(logits, jax.random.key(1), config)
    counts = np.bincount(np.asarray(drawn), minlength=7)
    assert np.flatnonzero(counts).tolist() == kept
    expected = p[kept] / p[kept].sum() * 4000
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 22.5


def test_steps_of_a_sample_are_independent() -> None:
    """Successive coin flips of one row: reusing a key would repeat the first one."""
    result = run_markov(np.full((2, 2), 0.5), DecodeConfig(400, temperature=1.0), rng=jax.random.key(0))
    flips = np.asarray(result.tokens[0])
    pairs = np.bincount(flips[:-1] * 2 + flips[1:], minlength=4)
    assert ((pairs - 399 / 4) ** 2 / (399 / 4)).sum() < 16.3  # 3 degrees of freedom, 99.9 %


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_narrow_sampling_is_greedy(options: dict[str, Any]) -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(9), size=9)
    config = DecodeConfig(20, **{"temperature": 1.0, **options})
    sampled = run_markov(table, config, rows=3, rng=jax.random.key(9))
    greedy = run_markov(table, DecodeConfig(20), rows=3)
    np.testing.assert_array_equal(sampled.tokens, greedy.tokens)
    np.testing.assert_array_equal(sampled.scores, greedy.scores)


def test_same_key_same_bits() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(9), size=9)
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    one, two, other = (run_markov(table, DecodeConfig(20, temperature=1.0), rng=key) for key in keys)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.scores, two.scores)
    assert (one.tokens != other.tokens).any()


# --- against transformers


def make_torch_lm(family: str, seed: int) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    common = {"vocab_size": VOCAB, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **common)
        return transformers.GPT2LMHeadModel(config).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 32}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes, **common)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("family", "length_penalty"), [("gpt2", 0.0), ("gpt2", 1.0), ("gpt2", 2.5), ("llama", 1.0)])
def test_beams_equal_transformers(family: str, length_penalty: float) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    options = {"num_beams": 3, "length_penalty": length_penalty, "max_new_tokens": 8}
    lengths = set()
    for seed in range(3):
        theirs = make_torch_lm(family, seed)
        embeddings, mask = make_prompts(seed)
        with torch.no_grad():
            expected = theirs.generate(
                inputs_embeds=torch.from_numpy(embeddings),
                attention_mask=torch.from_numpy(mask.astype(np.int64)),
                generation_config=transformers.GenerationConfig(**options, eos_token_id=[3, 8, 21], pad_token_id=60),
            ).numpy()
        lm_config = lm_config_from_hf(theirs.config.to_dict())
        tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
        params = import_lm(lm_config, tensors, dtype=jnp.float32)
        config = DecodeConfig(**options, stop_ids=(3, 8, 21), pad_id=60)
        result = generate(build_lm(lm_config), params, embeddings, mask, config=config)
        np.testing.assert_array_equal(result.tokens[:, : expected.shape[1]], expected)
        assert (result.tokens[:, expected.shape[1] :] == 60).all()
        lengths |= set(result.lengths.tolist())
    assert len(lengths) > 1 or length_penalty > 1  # some rows ended early, unless short texts hardly count


# --- options and their errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, r"max_new_tokens=0 must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1\.0 must be 0 or"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"temperature": 1.0, "top_k": -1}, r"top_k=-1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0\.0 must be in"),
        ({"num_beams": 0}, r"num_beams=0"),
        ({"length_penalty": float("inf")}, r"length_penalty=inf"),
        ({"stop_ids": (2, -1)}, r"stop_ids"),
        ({"top_k": 5}, r"top_k has no effect without sampling"),
        ({"num_beams": 2, "temperature": 0.5}, r"num_beams=2 searches"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeConfig(**{"max_new_tokens": 4, **options})


def test_bad_calls_are_refused() -> None:
    module, params = make_lm(0)
    embeddings, mask = make_prompts(0)
    with pytest.raises(UserError, match="needs a random key"):
        generate(module, params, embeddings, mask, config=DecodeConfig(2, temperature=1.0))
    with pytest.raises(UserError, match=r"32 positions; shorten the prompt or lower it to 28"):
        generate(module, params, embeddings, mask, config=DecodeConfig(29))
    for wrong in (mask[:, ::-1], np.zeros_like(mask)):
        with pytest.raises(ValueError, match="padded on the left"):
            generate(module, params, embeddings, wrong, config=DecodeConfig(2))


def test_the_last_position_of_the_model_can_be_reached() -> None:
    module, params = make_lm(0)
    embeddings, mask = make_prompts(0, (30,))
    result = generate(module, params, embeddings, mask, config=DecodeConfig(3))
    tokens, _ = decode_slowly(module, params, embeddings[0], 3)
    assert result.tokens[0].tolist() == tokens
