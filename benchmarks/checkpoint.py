"""What a save costs, and the digests in it: CPU-seconds and wall time by turns. Figures: docs/reliability.md.

python -m benchmarks.checkpoint --megabytes=240 --directory=runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import jax

from frozen_jax.checkpoint import Checkpoints
from frozen_jax.digests import digest_arrays

ARRAYS = 60


def main() -> None:
    """Prints one line of JSON: medians over the rounds, each of which saves to a fresh directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=240, help="of the state, in float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", default=None, help="to save in; the system's for temporary files by default")
    options = parser.parse_args()
    width = options.megabytes * 10**6 // 4 // ARRAYS
    state = {
        f"a{n}": jax.random.normal(key, (width,)) for n, key in enumerate(jax.random.split(jax.random.key(0), ARRAYS))
    }
    jax.block_until_ready(state)
    rounds = []
    for _ in range(options.rounds):
        cpu = time.process_time()
        digest_arrays(state)
        digest = time.process_time() - cpu
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            checkpoints = Checkpoints(directory, keep=1, fingerprint="lm", config_digest="config")
            cpu, wall = time.process_time(), time.monotonic()
            checkpoints.save(1, state, position={})
            checkpoints.wait()
            rounds.append((digest, time.process_time() - cpu, time.monotonic() - wall))
            checkpoints.close()
    digest, save, wall = (statistics.median(column) for column in zip(*rounds, strict=True))
    figures = {"digest_cpu_s": digest, "save_cpu_s": save, "save_wall_s": wall, "digest_share": digest / save}
    print(json.dumps({"megabytes": options.megabytes, **{name: round(value, 4) for name, value in figures.items()}}))


if __name__ == "__main__":
    main()
