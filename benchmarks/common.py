"""What the benchmarks share: changed configs, runs made once, flags, towers with random weights of published shapes,
interleaved timing, reports.

Times are CPU-seconds of the whole process, all threads together, where there is no accelerator: other processes on the
machine then disturb them little. With an accelerator they are seconds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax import run as runs
from frozen_jax.batch import SLOT, Batch
from frozen_jax.config import Config, from_config_dict, to_dict
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.published import PUBLISHED
from frozen_jax.models.vision import build_vision
from frozen_jax.report import digest_measured
from frozen_jax.startup import has_accelerator, keep_freed_memory
from frozen_jax.state import Params, map_with_path

LMS = {name.rpartition("/")[2]: entry for name, entry in PUBLISHED.items()}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Flags that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", default="gpt2", choices=sorted(LMS), metavar="NAME", help="gpt2, opt-6.7b, …")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--slots", type=int, default=2, help="P, prefix vectors per image")
    parser.add_argument("--words", type=int, default=32, help="of a caption, or to be decoded")
    parser.add_argument("--rounds", type=int, default=7, help="every variant runs once a round; medians count")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores to use, on a machine without accelerator")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Pins the process to its cores and sets what both sides run under; to be called before anything computes."""
    if not has_accelerator():
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[-options.cores :])
        # torch's idle threads must not spin: their CPU time would count against it.
        os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS=str(options.cores))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a peer needs the GPU's memory too
    keep_freed_memory()
    if options.dtype is None:
        options.dtype = "float32" if on_cpu() else "bfloat16"


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    return jax.default_backend() == "cpu"


def make_model(options: argparse.Namespace, *, remat: str = "none") -> FrozenModel:
    """The towers of the paper's recipe: NF-ResNet-50 and a linear prefix before a published language model."""
    config = lm_config_from_hf(LMS[options.lm])
    dtype = jnp.dtype(options.dtype)
    prefix = Prefix(options.slots, config.embed_width, embedding_rms=0.02, dtype=dtype)
    vision = build_vision("nf_resnet50", dtype=dtype)
    return FrozenModel(build_lm(config, dtype=dtype, remat=remat), vision, prefix)


def describe_params(model: FrozenModel, *, image_size: int, dtype: Any) -> Params:
    """Shapes of all parameters: the language model's in `dtype`, the others in float32."""

    def init() -> Params:
        key = jax.random.key(0)
        return {**model.init_lm(key), **model.init_vision(key, image_size=image_size)}

    shapes: Params = jax.eval_shape(init)
    shapes["lm"] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes["lm"])
    return shapes


def draw_params(shapes: Params) -> Params:
    """Random kernels and tables of deviation 0.02, gains of 1, branch gains of 0.5, biases of 0, on the device."""

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, seed = path.rpartition("/")[2], zlib.crc32(path.encode())
        if name not in ("kernel", "embedding"):
            value = {"gain": 1.0, "scale": 1.0, "skip_gain": 0.5}.get(name, 0.0)
            return jnp.full(leaf.shape, value, leaf.dtype)
        if on_cpu():  # numpy compiles nothing
            values = np.random.default_rng(seed).standard_normal(leaf.shape, np.float32)
            return jnp.asarray(np.float32(0.02) * values, leaf.dtype)
        return (0.02 * jax.random.normal(jax.random.key(seed), leaf.shape, leaf.dtype)).astype(leaf.dtype)

    return map_with_path(draw, shapes)


def draw_batch(options: argparse.Namespace, vocab_size: int) -> Batch:
    """Noise as images, random words as captions: slots, then words, all of which carry loss."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.slots + options.words)
    tokens = rng.integers(0, vocab_size, shape, dtype=np.int32)
    tokens[:, : options.slots] = SLOT
    images = rng.integers(0, 256, (options.batch, 1, options.image_size, options.image_size, 3), dtype=np.uint8)
    return Batch(images, tokens, (tokens != SLOT).astype(np.float32), np.arange(options.batch, dtype=np.int32))


def measure(variants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Medians of seconds (CPU-seconds on a CPU) of variants that take turns; each runs once before, unmeasured."""
    clock = time.process_time if on_cpu() else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(rounds):
        for name, run in variants.items():
            start = clock()
            run()
            spent[name].append(clock() - start)
    return {name: float(np.median(times)) for name, times in spent.items()}


def describe_machine(options: argparse.Namespace, *, peer: bool) -> dict[str, Any]:
    """Device, versions, date and flags, to stand beside every figure."""
    packages = ["jax", "jaxlib", "flax", "numpy", *(["torch", "transformers"] if peer else [])]
    device = jax.devices()[0]
    name = device.device_kind
    if on_cpu():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = f"{lines[0].partition(': ')[2] if lines else platform.processor()}, {options.cores} core(s)"
    return {
        "device": name,
        "platform": device.platform,
        "seconds": "CPU-seconds of all threads" if on_cpu() else "seconds",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "date": datetime.date.today().isoformat(),
        "options": {key: value for key, value in vars(options).items() if key != "json"},
    }


def report(options: argparse.Namespace, machine: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Prints a table of the figures and writes them to `--json`."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['device']}; {versions}; {machine['date']}; in {machine['seconds']}")
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:{width}}  {format_value(value)}")
    if options.json is not None:
        options.json.write_text(json.dumps({**rows, **machine}, indent=2) + "\n", encoding="utf-8")


def format_value(value: Any) -> str:
    """Four digits of what is a number."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_value(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def replace_flags(defaults: Sequence[str], given: Sequence[str]) -> list[str]:
    """Returns flags of which those given take the place of defaults, the config file first.

    The library that reads them refuses a second file, and settings in front of it.

    Examples:
        >>> replace_flags(["--config=a.py", "--config.seed=1", "--config.blind=True"], ["--config=b.py"])
        ['--config=b.py', '--config.seed=1', '--config.blind=True']
    """
    names = {word.partition("=")[0] for word in given}
    kept = [word for word in defaults if word.partition("=")[0] not in names]
    return sorted([*kept, *given], key=lambda word: not word.startswith("--config="))


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a config with some settings replaced, `{"optim": {"learning_rate": 1e-3}}`."""

    def merge(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        merged = {key: merge(old[key], value) for key, value in new.items() if isinstance(value, Mapping)}
        return {**old, **new, **merged}

    return from_config_dict(merge(to_dict(config), changes))


def run_once(config: Config, workdir: Path, *, mode: str = "train") -> dict[str, Any]:
    """Returns the report of one run, trained (unless `mode` is "eval") and measured where it is not there yet."""
    path = workdir / f"{config.evaluate.report}.json"
    if path.exists():
        report = json.loads(path.read_text())
        if report["train"]["finished"] and report["config_digest"] == digest_measured(config):
            return dict(report)
    return runs.run(config, workdir, mode=mode)
