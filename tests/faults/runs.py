"""What the tests of whole runs under faults share: the log without times, the bits of a checkpoint."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TIMES = ("examples_per_s", "step_time_s", "input_wait_s")


def read_lines(workdir: Path) -> list[dict]:
    """Returns `metrics.jsonl` without what the clock gave; every number as it was written, to the last digit."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]


def fingerprint_checkpoint(workdir: Path, step: int) -> dict:
    """Returns the digests of all arrays of a checkpoint and its position, without times: equal, if all bits are."""
    meta = json.loads((workdir / f"checkpoints/{step}/meta/metadata").read_text())
    position = {key: value for key, value in meta["position"].items() if key not in _TIMES}
    return {"arrays": meta["arrays"], "position": position, "best": meta["best"]}


def list_steps(workdir: Path) -> list[int]:
    """Lists the steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
