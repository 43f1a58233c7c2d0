"""Faults in numbers: damaged checkpoints, and runs killed at random instants. Figures: docs/reliability.md.

python -m benchmarks.soak damage --count=10000
python -m benchmarks.soak kill --count=200
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import mmap
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

KINDS = ("flip", "truncate", "zero")
PHASES = ("start-up", "training", "evaluation")  # and "save", which leaves a directory half written or half deleted
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


class Started(NamedTuple):
    """A run that goes on in a fork.

    Attributes:
        process: its id.
        phase: one byte that it shares with us, an index of PHASES.
        log: what it prints.
    """

    process: int
    phase: mmap.mmap
    log: Path


def kill_runs(directory: Path, count: int, *, seed: int, steps: int) -> dict[str, Any]:
    """Kills runs of the small config at random instants, starts each again until it ends, and compares all bits.

    Every start is a fork of this process, which has imported everything and started nothing of JAX, and finds the
    programs that the first one compiled. An instant is a number of CPU-seconds, so that it falls alike on a busy
    machine, and up to 50 ms more, in which a run may be waiting for its disk.

    Returns:
        `kills`, and `during` what they fell; `runs` that were carried to their end; `different`: checkpoints after a
        kill, and last checkpoints and logs of runs, that are not those of the run that nobody killed.

    Raises:
        RuntimeError: a start failed, or the programs that were kept give other bits than those just compiled.
    """
    import frozen_jax.run  # noqa: F401  for the forks

    rng = random.Random(seed)
    end_run(start_run(directory / "compiled", steps, keep=steps))
    longest = end_run(start_run(directory / "whole", steps, keep=steps))
    expected = describe_run(directory / "whole", steps)
    if describe_run(directory / "compiled", steps) != expected:
        raise RuntimeError("the same run with programs that were kept has other bits")
    workdir = directory / "killed"
    checkpoints = workdir / "checkpoints"
    fell: Counter[str] = Counter()
    runs = different = 0
    progress = tqdm(total=count, unit="kill", mininterval=10)
    while fell.total() < count or workdir.exists():
        before = list_unfinished(checkpoints)
        run = start_run(workdir, steps, keep=2)
        instant = rng.uniform(0, longest) if fell.total() < count else math.inf
        if end_run(run, instant, late=rng.uniform(0, 0.05)) is None:
            fell["save" if list_unfinished(checkpoints) - before else PHASES[run.phase[0]]] += 1
            saved = list_steps(checkpoints)
            different += any(describe_step(workdir, n) != describe_step(directory / "whole", n) for n in saved)
            progress.update()
        else:
            runs += 1
            different += describe_run(workdir, steps) != expected
            shutil.rmtree(workdir)
        progress.set_postfix(runs=runs, different=different, **fell, refresh=False)
    progress.close()
    return {"kills": fell.total(), "during": dict(fell), "runs": runs, "different": different}


def start_run(workdir: Path, steps: int, *, keep: int) -> Started:
    """Starts a run of the small config in a fork, with compiled programs kept beside `workdir`."""
    run = Started(0, mmap.mmap(-1, 1), Path(f"{workdir}.log"))
    process = os.fork()
    if process:
        return run._replace(process=process)
    status = 1
    try:
        with run.log.open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        _run_here(workdir, small_config(steps, keep=keep), run.phase)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _run_here(workdir: Path, config, phase: mmap.mmap) -> None:
    import jax

    from frozen_jax import train
    from frozen_jax.config import from_config_dict
    from frozen_jax.preemption import StopRequest
    from frozen_jax.run import run
    from frozen_jax.startup import keep_freed_memory, use_compilation_cache

    class Marking(StopRequest):
        def hold(self) -> None:  # after every step
            super().hold()
            phase[0] = PHASES.index("training")

    def marking(*arguments, **options):
        phase[0] = PHASES.index("evaluation")
        scores = evaluate(*arguments, **options)
        phase[0] = PHASES.index("training")
        return scores

    evaluate, train.evaluate = train.evaluate, marking
    keep_freed_memory()
    use_compilation_cache(workdir.parent / "cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    run(from_config_dict(config), workdir, mode="train", stop=Marking())


def end_run(run: Started, instant: float = math.inf, *, late: float = 0.0) -> float | None:
    """Waits for a run's end, or kills it `late` seconds after it has used `instant` CPU-seconds.

    Returns:
        The CPU-seconds that it took to its end; None if it was killed before.

    Raises:
        RuntimeError: it ended with an error.
    """
    clock = ~run.process << 3 | 2  # the CPU-time clock of another process, see clock_getcpuclockid(3)
    ended = status = 0
    while not ended:
        if time.clock_gettime(clock) >= instant:
            time.sleep(late)
            os.kill(run.process, signal.SIGKILL)
            instant = math.inf
        ended, status, usage = os.wait4(run.process, os.WNOHANG)
        time.sleep(0.002)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        raise RuntimeError(f"a run ended with wait status {status}: {run.log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def small_config(steps: int, *, keep: int):
    """Returns `configs/debug_tiny.py` with a save at every third step and a line for each."""
    from configs.debug_tiny import get_config

    config = get_config()
    config.train.steps, config.train.log_every, config.train.evaluate_every = steps, 1, 10
    config.checkpoint.every, config.checkpoint.keep = 3, keep
    return config


def list_steps(checkpoints: Path) -> list[int]:
    """Lists the complete checkpoints."""
    return [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]


def list_unfinished(checkpoints: Path) -> set[int]:
    """Returns the inodes of the directories that are being written or deleted."""
    return {path.stat().st_ino for path in checkpoints.glob("*") if not path.name.isdecimal()}


def describe_step(workdir: Path, step: int) -> object:
    """Returns the digests of a checkpoint's arrays, its position without times, and whether it is the best."""
    meta = json.loads((workdir / f"checkpoints/{step}/meta/metadata").read_text())
    return meta["arrays"], _without_times(meta["position"]), meta["best"]


def describe_run(workdir: Path, steps: int) -> object:
    """Returns the last checkpoint as `describe_step` does, and the log without times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return describe_step(workdir, steps), [_without_times(json.loads(line)) for line in lines]


def _without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("examples_per_s", "step_time_s", "input_wait_s")}


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
