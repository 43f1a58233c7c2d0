"""Checkpoints: exact round trips, retention, refusals, damage, kills at any instant. Disks: `faults/test_disks.py`."""

import gc
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from frozen_jax.checkpoint import Checkpoints, DamagedError
from frozen_jax.errors import UserError


@pytest.fixture
def tmp_path(tmp_path):
    """Memory where there is a disk in memory: every save waits for its files to be on the disk, thrice a test."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as directory:
        yield Path(directory)


def make_state(seed: int = 0) -> dict:
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    trainable = {
        "vision": {"stem": {"kernel": jax.random.normal(next(keys), (3, 16, 32))}},
        "prefix": {
            "kernel": jax.random.normal(next(keys), (32, 64)).astype(jnp.bfloat16),
            "on": jnp.array([True, False]),
        },
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3))).init(trainable)
    return {"trainable": trainable, "optimiser": optimiser, "step": jnp.int32(7)}


def abstract(state, sharding=None):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def open_checkpoints(directory, *, keep=2, fingerprint="lm-a", config_digest="cfg-a", **more):
    return Checkpoints(directory, keep=keep, fingerprint=fingerprint, config_digest=config_digest, **more)


def assert_bitwise_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """One checkpoint, of step 10, not to be changed: copy it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = open_checkpoints(directory, lm_name="gpt2 in float32")
    checkpoints.save(10, make_state(), position={"epoch": 1, "index": 320, "best": 0.1, "patience": 2, "note": None})
    checkpoints.close()
    return directory


def test_round_trip_is_bitwise_exact(saved):
    checkpoints = open_checkpoints(saved)
    assert (checkpoints.steps(), checkpoints.latest_step(), checkpoints.best_step()) == ([10], 10, None)
    state, position = checkpoints.restore(10, abstract(make_state()))
    assert_bitwise_equal(state, make_state())
    assert position == {"epoch": 1, "index": 320, "best": 0.1, "patience": 2, "note": None}
    assert all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(state))


def test_an_infinite_best_loss_survives(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, {"a": jnp.ones(2)}, position={"best": float("inf")})
    checkpoints.wait()
    assert checkpoints.restore(1, {"a": jnp.ones(2)})[1] == {"best": float("inf")}


def test_files_hold_no_pickle_and_no_frozen_model(saved):
    names = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert "10/meta/metadata" in names
    for name in names:
        content = (saved / name).read_bytes()
        # A pickle of protocol 2 or later begins with 0x80 and the protocol, and ends with a full stop.
        assert not (content[:1] == b"\x80" and content[1] <= 5 and content.endswith(b".")), name
    arrays = json.loads((saved / "10/meta/metadata").read_text())["arrays"]
    assert {name.split("/")[0] for name in arrays} == {"trainable", "optimiser", "step"}


def test_the_caller_may_donate_the_state_while_it_is_written(tmp_path):
    state = {"a": jax.random.normal(jax.random.key(0), (512, 1024)), "b": jnp.zeros((512, 1024))}
    expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 3 + 1, tree), donate_argnums=0)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, state, position={})
    for _ in range(20):
        state = update(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_bitwise_equal(checkpoints.restore(1, abstract(state))[0], expected)


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    state = {"a": jnp.arange(4.0)}
    for step in range(1, 7):
        checkpoints.save(step, state, position={}, best=step in (1, 3))
        if step == 2:
            checkpoints.wait()
            assert checkpoints.steps() == [1, 2]
    checkpoints.close()
    assert checkpoints.steps() == [3, 5, 6]
    assert sorted(os.listdir(tmp_path)) == ["3", "5", "6"]
    again = open_checkpoints(tmp_path)
    assert (again.latest_step(), again.best_step(), again.steps()) == (6, 3, [3, 5, 6])
    again.save(7, state, position={}, best=True)
    again.close()
    assert (again.best_step(), sorted(os.listdir(tmp_path))) == (7, ["6", "7"])


def test_no_checkpoint_yet(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "absent")
    assert (checkpoints.latest_step(), checkpoints.best_step(), checkpoints.steps()) == (None, None, [])
    checkpoints.close()
    assert not (tmp_path / "absent").exists()  # reading never writes
    with pytest.raises(UserError, match="no checkpoint of step 3; there are: none"):
        checkpoints.restore(3, {})


def test_a_step_may_not_go_back_and_a_leaf_must_be_an_array(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(5, {"a": jnp.ones(1)}, position={})
    with pytest.raises(ValueError, match="step 5 is not after the newest checkpoint, step 5"):
        checkpoints.save(5, {"a": jnp.ones(1)}, position={})
    with pytest.raises(TypeError, match="a/b"):
        checkpoints.save(6, {"a": {"b": 3.0}}, position={})
    with pytest.raises(UserError, match=r"checkpoint\.keep = 0"):
        open_checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("spec", [P(), P("x"), P(None, "x")])
def test_restores_into_another_sharding(tmp_path, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    saved_as, wanted = NamedSharding(mesh, P("x")), NamedSharding(mesh, spec)
    array = jax.random.normal(jax.random.key(2), (16, 8))
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, {"a": jax.device_put(array, saved_as)}, position={})
    checkpoints.wait()
    for sharding in (wanted, None):
        state, _ = checkpoints.restore(1, abstract({"a": array}, sharding))
        assert sharding is None or state["a"].sharding == sharding
        assert_bitwise_equal(state, {"a": array})


# What is refused


def test_refuses_another_language_model_and_another_configuration(saved):
    both = r"language model gpt2 in float32 \(lm-a\), this run loads opt in bfloat16 \(lm-b\): .*--workdir"
    with pytest.raises(UserError, match=both):
        open_checkpoints(saved, fingerprint="lm-b", lm_name="opt in bfloat16").restore(10, abstract(make_state()))
    with pytest.raises(UserError, match=r"configuration cfg-a, this run has cfg-b: .*--workdir"):
        open_checkpoints(saved, config_digest="cfg-b").restore(10, abstract(make_state()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["prefix"].update(kernel=jnp.zeros((32, 65), jnp.bfloat16)),
            r"bfloat16\[32, 64\].*bfloat16\[32, 65\]",
        ),
        (lambda t: t["prefix"].update(kernel=jnp.zeros((32, 64))), r"bfloat16\[32, 64\].*float32\[32, 64\]"),
        (lambda t: t["prefix"].update(bias=jnp.zeros(3)), r"'trainable/prefix/bias' is absent in the checkpoint"),
        (lambda t: t["prefix"].pop("on"), r"'trainable/prefix/on' is bool\[2\] in the checkpoint, absent in this run"),
    ],
)
def test_refuses_other_arrays(saved, change, message):
    state = make_state()
    change(state["trainable"])
    with pytest.raises(UserError, match=message):
        open_checkpoints(saved).restore(10, abstract(state))


def test_refuses_another_format(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "c")
    meta = directory / "10/meta/metadata"
    content = json.loads(meta.read_text()) | {"format": 99}
    from frozen_jax.checkpoint import _meta_digest

    meta.write_text(json.dumps(content | {"digest": _meta_digest(content)}))
    with pytest.raises(UserError, match="checkpoint format 99, this version reads 3"):
        open_checkpoints(directory).restore(10, abstract(make_state()))


def test_refuses_a_step_under_another_name(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "c")
    (directory / "10").rename(directory / "20")
    with pytest.raises(UserError, match="checkpoint of step 20 is damaged: it was written as step 10"):
        open_checkpoints(directory).restore(20, abstract(make_state()))


# Damage


def damage(path: Path, kind: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del content[rng.randrange(len(content)) :]
    else:
        start = rng.randrange(len(content))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(bytes(content))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # nothing is printed beside the error
def test_damage_is_named_or_harmless(saved, tmp_path):
    """Flips, truncations, zeroed stretches in every file: an error that names the step, or exactly what was saved."""
    rng = random.Random(0)
    expected, target = make_state(), abstract(make_state())
    files = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file() and path.stat().st_size)
    largest = max(files, key=lambda path: (saved / path).stat().st_size)
    outcomes = {"refused": 0, "named an array": 0, "harmless": 0}
    for number, name in enumerate([*files * 3, *[largest] * 40]):
        directory = shutil.copytree(saved, tmp_path / "c")
        damage(directory / name, ("flip", "truncate", "zero")[number % 3], rng)
        try:
            state, position = open_checkpoints(directory).restore(10, target)
        except UserError as error:
            assert "step 10 is damaged" in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
            outcomes["named an array"] += "array 'trainable/" in str(error) or "array 'optimiser/" in str(error)
        else:
            assert_bitwise_equal(state, expected)
            assert position["index"] == 320
            outcomes["harmless"] += 1
        shutil.rmtree(directory)
    gc.collect()
    assert outcomes["refused"] >= 40 and outcomes["named an array"] >= 5, outcomes


def test_a_changed_position_is_refused(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "c")
    meta = directory / "10/meta/metadata"
    changed = meta.read_text().replace('"index": 320', '"index": 321')
    assert changed != meta.read_text()
    meta.write_text(changed)
    with pytest.raises(UserError, match="step 10 is damaged: meta/metadata does not match its own digest"):
        open_checkpoints(directory).restore(10, abstract(make_state()))


@pytest.fixture
def three(tmp_path):
    """Steps 1, 2 and 3, each holding its own number."""
    checkpoints = open_checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, {"a": jnp.full(64, step)}, position={"step": step}, best=step == 3)
    checkpoints.close()
    return tmp_path


@pytest.mark.parametrize("set_aside", [True, False])
@pytest.mark.parametrize("file", ["meta/metadata", "arrays/manifest.ocdbt"])
def test_fallback_takes_the_newest_whole_one(three, file, set_aside, capsys):
    for step in (2, 3):
        (three / f"{step}/{file}").write_bytes(b"\0" * 100)
    with pytest.raises(DamagedError, match=r"step 3 is damaged.*there: 1, 2.*checkpoint\.on_damage=fallback"):
        open_checkpoints(three).restore_newest({"a": jnp.zeros(64, int)}, set_aside=set_aside)
    checkpoints = open_checkpoints(three, on_damage="fallback")
    state, position = checkpoints.restore_newest({"a": jnp.zeros(64, int)}, set_aside=set_aside)
    assert position == {"step": 1} and bool((state["a"] == 1).all())
    warnings = capsys.readouterr().err.splitlines()
    assert [f"step {step} is damaged" in line for step, line in zip((3, 2), warnings, strict=True)] == [True, True]
    assert sorted(os.listdir(three)) == (["1", "damaged-2", "damaged-3"] if set_aside else ["1", "2", "3"])
    assert checkpoints.best_step() is None
    if set_aside:  # the step is done again, and may be damaged again
        checkpoints.save(2, state, position={})
        checkpoints.close()
        (three / "2/meta/metadata").write_text("{}")
        again = open_checkpoints(three, on_damage="fallback")
        assert again.restore_newest({"a": jnp.zeros(64, int)}, set_aside=True)[1] == {"step": 1}
        assert sorted(os.listdir(three)) == ["1", "damaged-2", "damaged-2.2", "damaged-3"]


def test_fallback_with_nothing_whole_is_refused(three):
    for step in (1, 2, 3):
        (three / f"{step}/meta/metadata").unlink()
    checkpoints = open_checkpoints(three, on_damage="fallback")
    with pytest.raises(DamagedError, match=r"step 1 is damaged"):
        checkpoints.restore_newest({"a": jnp.zeros(64, int)}, set_aside=False)


# Kills, full and read-only disks

WRITER = """
import sys, jax, jax.numpy as jnp
from frozen_jax.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2, fingerprint="lm-a", config_digest="cfg-a")
step = checkpoints.latest_step() or 0
while True:
    step += 1
    checkpoints.save(step, {"a": jnp.full((64, 64), step, jnp.float32)}, position={"step": step}, best=step % 7 == 0)
    print(step, flush=True)
"""


def test_a_kill_at_any_instant_leaves_only_complete_checkpoints(tmp_path):
    """A writer stopped at 25 random instants: what lies on disk then is what a SIGKILL would have left."""
    directory = tmp_path / "checkpoints"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, directory], stdout=subprocess.PIPE, text=True)
    rng, shots, seen_half_written = random.Random(0), [], 0
    try:
        while int(writer.stdout.readline()) < 3:
            pass
        for shot in range(25):
            time.sleep(rng.uniform(0.0, 0.03))
            writer.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOWAIT)
            shots.append(shutil.copytree(directory, tmp_path / f"shot{shot}"))
            writer.send_signal(signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    previous = 0
    for shot in [*shots, directory]:
        seen_half_written += any(not entry.isdecimal() for entry in os.listdir(shot))
        checkpoints = open_checkpoints(shot)
        assert checkpoints.latest_step() >= previous
        previous = checkpoints.latest_step()
        for step in checkpoints.steps():
            state, position = checkpoints.restore(step, {"a": jnp.zeros((64, 64))})
            assert position == {"step": step} and bool((state["a"] == step).all())
        checkpoints.save(previous + 1, {"a": jnp.zeros((64, 64))}, position={})
        checkpoints.close()
        assert all(entry.isdecimal() for entry in os.listdir(shot))  # the next run clears up
    assert seen_half_written > 5 and previous > 3


def test_a_kill_while_an_old_step_is_deleted_leaves_no_half_step(tmp_path, monkeypatch):
    def delete_one_file_and_die(path, **options):
        next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
        raise KeyboardInterrupt

    state = {"a": jnp.ones(8)}
    checkpoints = open_checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, position={})
    checkpoints.save(2, state, position={})
    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(shutil, "rmtree", delete_one_file_and_die)
        checkpoints.wait()
    again = open_checkpoints(tmp_path, keep=1)
    assert again.steps() == [2]
    assert_bitwise_equal(again.restore(2, abstract(state))[0], state)


def test_only_a_run_that_writes_clears_what_a_killed_one_left(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "c")
    for leftover in ("20.orbax-checkpoint-tmp", ".deleted-5"):
        shutil.copytree(directory / "10", directory / leftover)
    checkpoints = open_checkpoints(directory)
    checkpoints.restore(10, abstract(make_state()))
    assert len(os.listdir(directory)) == 3  # the other run may be alive and writing
    checkpoints.save(11, {"a": jnp.ones(1)}, position={})
    checkpoints.close()
    assert sorted(os.listdir(directory)) == ["10", "11"]


def test_a_file_that_cannot_grow_is_one_line_and_harms_nothing(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    small, large = {"a": jnp.ones(8)}, {"a": jax.random.normal(jax.random.key(0), (1024, 512))}
    checkpoints.save(1, small, position={})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the nearest to a full disk within one process
    try:
        with pytest.raises(UserError, match=r"step 2 could not be written: .*complete checkpoints \(1\)") as caught:
            checkpoints.save(2, large, position={})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == ["1"]
    assert_bitwise_equal(checkpoints.restore(1, abstract(small))[0], small)
    checkpoints.save(2, large, position={})
    checkpoints.close()
    assert_bitwise_equal(open_checkpoints(tmp_path).restore(2, abstract(large))[0], large)


PROCESS = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from frozen_jax.checkpoint import Checkpoints
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
array = np.arange(96, dtype=np.float32).reshape(8, 12)

def put(spec, value):
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index: value[index])

checkpoints = Checkpoints(sys.argv[1], keep=1, fingerprint="lm-a", config_digest="cfg-a")
for step in (1, 2, 3):
    state = {"rows": put(P("x"), array * step), "columns": put(P(None, "x"), array), "all": put(P(), array)}
    checkpoints.save(step, state, position={"step": step}, best=step == 1)
checkpoints.wait()
assert checkpoints.steps() == [1, 3], checkpoints.steps()
wanted = {"rows": put(P(), array), "columns": put(P("x"), array), "all": put(P("x"), array)}
restored, position = checkpoints.restore(3, wanted)
assert position == {"step": 3}
for name, expected in (("rows", array * 3), ("columns", array), ("all", array)):
    assert restored[name].sharding == wanted[name].sharding
    for shard in restored[name].addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])
checkpoints.close()
print("done", jax.process_index())
"""


def test_two_processes_save_and_restore_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [sys.executable, "-c", PROCESS, tmp_path / "c", address]
    runs = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [run.communicate(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [output.splitlines()[-1:] for output, _ in outputs] == [["done 0"], ["done 1"]], outputs
    array = jnp.arange(96.0).reshape(8, 12)
    state, _ = open_checkpoints(tmp_path / "c").restore(3, abstract({"rows": array, "columns": array, "all": array}))
    assert_bitwise_equal(state, {"rows": array * 3, "columns": array, "all": array})
