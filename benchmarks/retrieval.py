"""How long a query of a gallery takes once it is loaded: the exact search, and the approximate one with its recall.

    PYTHONPATH=. python benchmarks/retrieval.py --pictures=100000 --width=128 --cores=2

The vectors are synthetic: unit vectors in 1,000 clumps. One query at a time, the ten nearest, medians over --queries;
wall time, as a user waits, and CPU time of all threads, which other processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLUMPS, SPREAD, K = 1000, 0.6, 10


def make_vectors(count: int, *, width: int, seed: int) -> np.ndarray:
    """Returns unit vectors around common centres, f32[count, width]."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLUMPS, width)).astype(np.float32)
    vectors = centres[random.integers(CLUMPS, size=count)]
    vectors += SPREAD * random.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def time_queries(ask: Callable[[np.ndarray], Any], queries: np.ndarray) -> dict[str, float]:
    """Asks one query after the other; returns ms of the median and of the slowest twentieth."""
    ask(queries[:1])  # compiles
    walls, used = [], []
    for query in queries:
        wall, cpu = time.perf_counter(), time.process_time()
        ask(query[None])
        walls.append(time.perf_counter() - wall)
        used.append(time.process_time() - cpu)
    return {
        "wall_ms": round(1e3 * float(np.median(walls)), 2),
        "wall_ms_95": round(1e3 * float(np.quantile(walls, 0.95)), 2),
        "cpu_ms": round(1e3 * float(np.median(used)), 2),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=128, help="of a vector: retrieval.width")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--cores", type=int, default=2, help="CPU cores to use")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.cores :])
    from frozen_jax.nearest import ApproximateSearch, ExactSearch, has_faiss, measure_recall  # threads start here

    vectors = make_vectors(given.pictures, width=given.width, seed=1)
    queries = make_vectors(given.queries, width=given.width, seed=2)
    exact = ExactSearch(vectors)
    figures: dict[str, Any] = {"pictures": given.pictures, "width": given.width, "cores": given.cores}
    figures["exact"] = time_queries(lambda query: exact.search(query, k=K), queries)
    if has_faiss():
        start = time.process_time()
        near = ApproximateSearch(vectors)
        figures["approximate"] = {
            "build_cpu_s": round(time.process_time() - start, 2),
            **time_queries(lambda query: near.search(query, k=K), queries),
            "recall_at_10": round(measure_recall(vectors, near, queries, k=K), 4),
        }
    print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
