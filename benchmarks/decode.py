"""Tokens per second of greedy decoding after an image's slots, `python benchmarks/decode.py`.

    PYTHONPATH=. python benchmarks/decode.py --lm=gpt2 --rows 1 8 32 --peer=torch --json=decode.json

With `--peer=torch` transformers' `generate` (KV cache, no gradient, no stop token, as here) takes turns with ours, from
the same weights and prompts. `ratio` is ours / peer in tokens per CPU-second, or per second on an accelerator, the
least over all numbers of rows; `tokens_equal` says whether all tokens are the same, which float32 must give.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from frozen_jax.chips import find_chip
from frozen_jax.decode import DecodeConfig, generate, prepare_decoding
from frozen_jax.flops import count_decode_token
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.state import Params


def measure_rows(
    options: argparse.Namespace, rows: int, model: FrozenModel, params: Params, peer: Any
) -> dict[str, Any]:
    """Times one batch size."""
    rng = np.random.default_rng(rows)
    width = model.lm.config.embed_width
    prompts = jnp.asarray(0.02 * rng.standard_normal((rows, options.slots, width)), jnp.dtype(options.dtype))
    mask = np.ones((rows, options.slots), bool)
    config = DecodeConfig(max_new_tokens=options.words)
    module, lm_params = prepare_decoding(model.lm, params["lm"])

    def run_ours() -> np.ndarray:
        return np.asarray(generate(module, lm_params, prompts, mask, config=config).tokens)

    variants: dict[str, Callable[[], np.ndarray]] = {"ours": run_ours}
    if peer is not None:
        variants["peer"] = functools.partial(peer, prompts)
    medians = common.measure(variants, rounds=options.rounds)
    tokens = rows * options.words
    result = {"rows": rows, "tokens_per_s": tokens / medians["ours"]}
    if peer is not None:
        result |= {
            "peer_tokens_per_s": tokens / medians["peer"],
            "ratio": medians["peer"] / medians["ours"],
            "tokens_equal": bool(np.array_equal(run_ours(), peer(prompts))),
        }
    chip = find_chip(jax.devices()[0].device_kind)
    if chip is not None:
        costs = count_decode_token(model, params, rows=rows, length=options.slots + options.words)
        floor = rows / costs.seconds(chip)
        result |= {"roofline_tokens_per_s": floor, "fraction_of_roofline": result["tokens_per_s"] / floor}
    return result


def make_peer(options: argparse.Namespace, model: FrozenModel, params: Params) -> Callable[[Any], np.ndarray]:
    """Returns transformers' greedy decoding."""
    import torch

    from benchmarks import torch_peer

    torch.set_num_threads(options.cores)
    dtype = getattr(torch, options.dtype)
    lm = torch_peer.torch_lm(model.lm.config, params["lm"], dtype=dtype).to("cpu" if common.on_cpu() else "cuda")
    lm.generation_config.eos_token_id = None

    def run(prompts: Any) -> np.ndarray:
        embeddings = torch.tensor(np.asarray(prompts, np.float32), device=lm.device).to(dtype)
        seen = torch.ones(embeddings.shape[:2], dtype=torch.long, device=lm.device)
        return torch_peer.decode_greedily(lm, embeddings, seen, words=options.words)

    return run


def main() -> None:
    """Reads the flags, measures, reports."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="decoded together, one after the other")
    parser.add_argument("--peer", choices=["torch"])
    options = parser.parse_args()
    common.prepare(options)
    model = common.make_model(options)
    shapes = common.describe_params(model, image_size=64, dtype=options.dtype)
    params = common.draw_params({"lm": shapes["lm"]})
    peer = make_peer(options, model, params) if options.peer else None
    found = [measure_rows(options, rows, model, params, peer) for rows in options.rows]
    report: dict[str, Any] = {f"{entry['rows']} rows": entry for entry in found}
    if peer is not None:
        report |= {
            "ratio": min(entry["ratio"] for entry in found),
            "tokens_equal": all(entry["tokens_equal"] for entry in found),
        }
    common.report(options, common.describe_machine(options, peer=peer is not None), report)


if __name__ == "__main__":
    main()
