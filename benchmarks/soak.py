"""Faults in numbers: damaged checkpoints, and runs killed at random instants. Figures: docs/reliability.md.

python -m benchmarks.soak damage --count=10000
python -m benchmarks.soak kill --count=200
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

KINDS = ("flip", "truncate", "zero")
PAGE = 512  # the small checkpoints' files are smaller than a page of 4096


def mutate(content: bytes, kind: str, rng: random.Random) -> bytes:
    """Returns the content with one bit flipped, cut somewhere, or with one aligned page of zeros."""
    changed = bytearray(content)
    if kind == "flip":
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del changed[rng.randrange(len(changed)) :]
    else:
        start = rng.randrange(len(changed)) // PAGE * PAGE
        changed[start : start + PAGE] = bytes(len(changed[start : start + PAGE]))
    return bytes(changed)


def damage_checkpoints(directory: Path, count: int, *, seed: int) -> dict[str, Counter[str]]:
    """Damages one file of a small checkpoint, loads it and mends the file, `count` times.

    Returns:
        By kind of damage: how often it was `detected`, how often there was `nothing` to detect (the file was as before,
        or only bytes that nobody reads had changed and exactly what was saved was loaded), how often another state
        was loaded: `wrong`.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from frozen_jax.checkpoint import Checkpoints, DamagedError

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # reads that Orbax drops when one of them fails
    rng = random.Random(seed)
    keys = jax.random.split(jax.random.key(seed), 3)
    state = {"a": jax.random.normal(keys[0], (32, 40)), "b": jax.random.normal(keys[1], (300,)).astype(jnp.bfloat16)}
    saved = {name: np.asarray(leaf).tobytes() for name, leaf in state.items()}
    checkpoints = Checkpoints(directory, keep=1, fingerprint="lm", config_digest="config")
    checkpoints.save(1, state, position={"epoch": 3, "used": 320})
    checkpoints.wait()
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for number in range(count):
        kind, path = KINDS[number % len(KINDS)], rng.choice(files)
        content = path.read_bytes()
        path.write_bytes(mutate(content, kind, rng))
        try:
            restored, position = checkpoints.restore(1, state)
            same = {name: np.asarray(leaf).tobytes() for name, leaf in restored.items()} == saved
            outcomes[kind]["nothing" if same and position == {"epoch": 3, "used": 320} else "wrong"] += 1
        except DamagedError:
            outcomes[kind]["detected"] += 1
        path.write_bytes(content)
    checkpoints.close()
    return outcomes


def kill_runs(directory: Path, count: int, *, seed: int, steps: int) -> dict[str, float]:
    """Runs the small config to its end in one go, and in as many as `count` kills make of it; compares all bits.

    Every run is a fork of this process, which has imported everything and started nothing of JAX.

    Returns:
        `kills` sent while a run was going on, `runs` that were carried to their end, `different`: those of them whose
        last checkpoint or log is not that of the run that nobody killed.
    """
    rng = random.Random(seed)
    start = time.monotonic()
    wait(start_run(directory / "whole", steps))
    longest = time.monotonic() - start
    expected = describe_run(directory / "whole", steps)
    totals = {"kills": 0, "runs": 0, "different": 0}
    workdir = directory / "killed"
    while totals["kills"] < count:
        fresh, start, instant = not workdir.exists(), time.monotonic(), rng.uniform(0, longest)
        process = start_run(workdir, steps)
        ended = status = 0
        while not ended and time.monotonic() < start + instant:
            time.sleep(0.01)
            ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            totals["kills"] += 1
            continue
        if status:
            raise RuntimeError(f"a run ended with wait status {status}; see {workdir}.log")
        if fresh:  # the first run of all had to compile
            longest = min(longest, time.monotonic() - start)
        totals["runs"] += 1
        totals["different"] += describe_run(workdir, steps) != expected
        shutil.rmtree(workdir)
    if workdir.exists():
        wait(start_run(workdir, steps))
        totals["runs"] += 1
        totals["different"] += describe_run(workdir, steps) != expected
    return totals


def start_run(workdir: Path, steps: int) -> int:
    """Starts a run of the small config in a fork; returns its process id."""
    from frozen_jax.config import from_config_dict
    from frozen_jax.run import run
    from frozen_jax.startup import use_compilation_cache

    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with Path(f"{workdir}.log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            use_compilation_cache(workdir.parent / "cache")
            run(from_config_dict(small_config(steps)), workdir, mode="train")
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def small_config(steps: int):
    """Returns `configs/debug_tiny.py` with a save at every third step and a line for each."""
    from configs.debug_tiny import get_config

    config = get_config()
    config.train.steps, config.train.log_every, config.train.evaluate_every = steps, 1, 10
    config.checkpoint.every = 3
    return config


def wait(process: int) -> None:
    """Waits for a run that is to succeed."""
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"a run ended with wait status {status}")


def describe_run(workdir: Path, steps: int) -> object:
    """Returns the digests of the last checkpoint, its position and the log, all without times."""
    times = ("examples_per_s", "step_time_s", "input_wait_s")
    meta = json.loads((workdir / f"checkpoints/{steps}/meta/metadata").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    plain = [{key: value for key, value in part.items() if key not in times} for part in (meta["position"], *lines)]
    return meta["arrays"], plain


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("damage", "kill"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30, help="of each killed run")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        start = time.monotonic()
        if options.what == "damage":
            result: object = damage_checkpoints(Path(directory), options.count, seed=options.seed)
        else:
            result = kill_runs(Path(directory), options.count, seed=options.seed, steps=options.steps)
        print(json.dumps({"what": options.what, "seconds": round(time.monotonic() - start), "result": result}))


if __name__ == "__main__":
    main()
