"""Kept memory and the private compilation cache."""

import os
import subprocess
import sys
import textwrap

import pytest

from frozen_jax.errors import UserError
from frozen_jax.startup import use_compilation_cache

ADD_UP = """
import resource, sys, threading
from frozen_jax.startup import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
import jax, jax.numpy as jnp

def count_faults():
    add_up = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x.T) @ x))
    x = jnp.ones((4500, 4))  # the square product takes 81 MB, more than any but the main store can hold
    for _ in range(20):  # until everything has found its place
        add_up(x).block_until_ready()
    faults = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        add_up(x).block_until_ready()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(int(kept), sorted(faults)[2])  # the median: an array that is freed late on a busy machine moves once

thread = threading.Thread(target=count_faults)  # as XLA's own threads, which have no store of their own then
thread.start()
thread.join()
"""

COMPILE = """
import sys, types
from pathlib import Path
sys.modules["zstandard"] = types.ModuleType("zstandard")  # installed, as far as JAX can tell, and not to be used
from frozen_jax.startup import use_compilation_cache
use_compilation_cache(Path(sys.argv[1]))
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
print(float(jax.jit(lambda x: jnp.cos(x) * 3)(1.0)), len(hits))
"""


def run_python(program, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_kept_memory_is_not_asked_for_again():
    kept, faults = map(int, run_python(ADD_UP, "keep"))
    assert kept
    _, faults_without = map(int, run_python(ADD_UP, "return"))
    # An array has 19,775 pages.
    assert faults_without > 18_000
    assert faults < faults_without / 20


def test_compiled_programs_are_found_again(tmp_path):
    directory = tmp_path / "new" / "cache"
    value, hits = run_python(COMPILE, directory)
    assert hits == "0"
    assert os.stat(directory).st_mode & 0o777 == 0o700
    again, hits = run_python(COMPILE, directory)
    assert again == value and int(hits) > 0
    for path in directory.glob("*-cache"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    anew, hits = run_python(COMPILE, directory)  # a damaged program is not run
    assert anew == value and hits == "0"


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_cache_that_others_can_write_is_refused(tmp_path, mode):
    directory = tmp_path / "cache"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(UserError, match=rf"others can write to {directory} \(mode {mode:o}\).*chmod go-w"):
        use_compilation_cache(directory)


def test_a_cache_below_a_directory_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match=rf"others can write to {tmp_path} "):
        use_compilation_cache(tmp_path / "cache")


def test_a_cache_behind_a_link_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match="not a directory that belongs to you"):
        use_compilation_cache(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_cache_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 12345, -1)
    with pytest.raises(UserError, match="not a directory that belongs to you"):
        use_compilation_cache(tmp_path / "cache")


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot be made or read|not a directory"):
        use_compilation_cache(tmp_path / "cache")
