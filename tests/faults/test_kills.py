"""SIGKILL at random instants of whole runs: in the end all bits are those of a run that nobody killed."""

import json
import os
import random
import subprocess
import sys

import pytest

from benchmarks.soak import KINDS, damage_checkpoints, mutate
from tests.faults.runs import ROOT


def test_killed_runs_end_as_one_that_was_not():
    """A process of its own: runs are forks of it, and nothing of JAX may be started before."""
    command = [sys.executable, "-m", "benchmarks.soak", "kill", "--count=6", "--steps=24"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["kills"] == 6 and result["runs"] >= 1 and result["different"] == 0, result
    assert len(result["during"]) > 1, result


def test_damage_to_checkpoints_is_detected_or_nothing(tmp_path):
    outcomes = damage_checkpoints(tmp_path, 240, seed=1)
    assert set(outcomes) == set(KINDS)
    for kind, counts in outcomes.items():
        assert counts["wrong"] == 0 and counts["detected"] > 15 and sum(counts.values()) == 80, (kind, counts)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_what_its_name_says(kind):
    content = bytes(range(1, 256)) * 8
    changed = mutate(content, kind, random.Random(3))
    bits = sum((one ^ other).bit_count() for one, other in zip(content, changed, strict=False))
    if kind == "flip":
        assert len(changed) == len(content) and bits == 1
    elif kind == "truncate":
        assert len(changed) < len(content) and bits == 0
    else:
        assert len(changed) == len(content) and changed.count(0) in (512, len(content) % 512)
