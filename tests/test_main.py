"""--distributed: the processes of a run join through JAX's own service, or the run says at once why not."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLAGS = ["--config=configs/debug_tiny.py", "--mode=eval"]
# JAX takes these for one task of a job of Slurm; it reads a Cloud TPU's metadata in the same call.
ONE_TASK = {
    "SLURM_JOB_ID": str(os.getpid()),  # of which JAX makes the port
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def start(code, tmp_path, *flags, **environment):
    """Runs `code`, in which `main` is the entry point; the run ends for want of checkpoints."""
    environment = {**{key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}, **environment}
    code = f"from frozen_jax.main import main\n{code}"
    command = [sys.executable, "-c", code, *FLAGS, f"--workdir={tmp_path}", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def test_distributed_starts_jaxs_service_where_jax_finds_a_cluster(tmp_path):
    code = """
import atexit, jax
atexit.register(lambda: print("initialized", jax.distributed.is_initialized()))
main()
"""
    done = start(code, tmp_path, "--distributed", **ONE_TASK)
    assert "holds no checkpoints" in done.stderr
    assert "initialized True" in done.stdout
    alone = start(code, tmp_path, **ONE_TASK)
    assert "holds no checkpoints" in alone.stderr and "initialized False" in alone.stdout


def test_distributed_without_a_cluster_is_one_line(tmp_path):
    done = start("main()", tmp_path, "--distributed")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX cannot find the other processes of this run: ") and line.endswith(
        "start a single process, without --distributed"
    )


def test_a_slice_of_several_machines_asks_for_the_flag(tmp_path):
    done = start("import jax\njax.process_count = lambda: 4\nmain()", tmp_path / "w")
    assert done.returncode == 1 and not (tmp_path / "w").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this is one of 4 machines") and "all of them with --distributed" in line
