"""Checkpoints on a disk that fills up and on one that turns read-only: one line each, and what was saved stays."""

import shutil
import subprocess
import sys

import pytest

DISKS = """
import os, subprocess, sys, jax, jax.numpy as jnp
from frozen_jax.checkpoint import Checkpoints
from frozen_jax.errors import UserError
mount = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], check=True)
def save(step, size):
    try:
        checkpoints = Checkpoints(mount + "/c", keep=2, fingerprint="lm-a", config_digest="cfg-a")
        checkpoints.save(step, {"a": jax.random.normal(jax.random.key(0), (size,))}, position={})
        checkpoints.close()
        print("saved", step, os.listdir(mount + "/c"))
    except UserError as error:
        print("refused", error, os.listdir(mount + "/c"))
save(1, 100)
save(2, 1_000_000)
subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
save(3, 100)
"""


def test_a_full_and_a_read_only_disk(tmp_path):
    unshare = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs user and mount namespaces to make a small disk")
    run = subprocess.run([*unshare, sys.executable, "-c", DISKS, tmp_path], capture_output=True, text=True)
    if run.returncode and "mount" in run.stderr:
        pytest.skip("a tmpfs may not be mounted here")
    saved, full, read_only = run.stdout.splitlines()
    assert saved == "saved 1 ['1']"
    assert "step 2 could not be written" in full and "No space left on device" in full and full.endswith("['1']")
    assert "step 3 could not be written" in read_only and "Read-only file system" in read_only
    assert "Traceback" not in run.stderr
