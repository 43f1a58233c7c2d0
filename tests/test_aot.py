"""What can be said about compiling for a TPU slice without its compiler; tests/tools/test_compile_check.py uses it."""

import dataclasses
import importlib.util

import jax
import pytest

from frozen_jax import aot
from frozen_jax.abstract import abstract_run
from frozen_jax.aot import count_step, list_changes, make_slice_mesh
from frozen_jax.chips import find_slice
from frozen_jax.config import from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.sharding import make_abstract_mesh


def test_without_the_compiler_the_error_says_what_to_install(tiny_config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'frozen_jax\[tpu\]'"):
        make_slice_mesh(from_config_dict(tiny_config), find_slice("v5e-1"))


def test_changes_go_from_cheap_to_dear(tiny_config):
    tiny_config.train.batch_size = 32
    config = from_config_dict(tiny_config)
    flags = [change.flags for change in list_changes(config, find_slice("v5e-8"))]
    assert flags == [
        "--config.mesh.data=1 --config.mesh.fsdp=-1 --config.mesh.frozen=sharded",
        "--config.lm.remat=dots",
        "--config.lm.remat=full",
        "--config.lm.weights=int8",
        "--config.optim.accumulate=2",
        "--config.optim.accumulate=4",
    ]


def test_changes_say_what_they_do_and_are_not_offered_twice(tiny_config):
    tiny_config.lm.mode, tiny_config.lm.remat, tiny_config.train.batch_size = "finetuned", "dots", 6
    config = from_config_dict(tiny_config)
    changes = list_changes(config, find_slice("v5e-1"))
    assert [change.flags for change in changes] == ["--config.lm.remat=full", "--config.optim.accumulate=2"]
    assert changes[0].config.lm.remat == "full"
    assert changes[1].config == dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=2))


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("the total memory required for HLO temporaries (18.71G) exceeds available HBM (15.75G).", 18.71),
        ("Ran out of memory in memory space hbm. Used 40.25G of 15.75G hbm. Exceeded by 24.50G.", 40.25),
    ],
)
def test_out_of_memory_is_a_result_with_the_compilers_number(message, gib):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    class Jitted:
        def trace(self, *described):
            return self

        def lower(self, **options):
            return Lowered()

    found = aot._compile(Jitted())
    assert not found.fits and found.peak_bytes == int(gib * 2**30) and message in found.message


def test_another_failure_of_the_compiler_is_not_hidden():
    class Jitted:
        def trace(self, *described):
            return self

        def lower(self, **options):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: 3G of something")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        aot._compile(Jitted())


def test_each_set_of_rows_reads_every_kernel(tiny_config):
    """Operations of an example do not depend on the mesh; bytes do, because eight devices read the kernels each."""
    config = from_config_dict(tiny_config)
    counts = {}
    for devices in (1, 8):
        mesh = make_abstract_mesh(config.mesh, devices=devices, batch_size=8)
        costs, groups = count_step(config, abstract_run(config, mesh, platform="tpu"))
        assert groups == devices and costs.examples == 8 // devices
        counts[devices] = costs
    assert counts[1].flops_per_example == counts[8].flops_per_example
    assert 8 * counts[8].vision.bytes > 4 * counts[1].vision.bytes
