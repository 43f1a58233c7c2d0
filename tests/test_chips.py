import pytest

from frozen_jax.chips import CHIPS, GIB, SLICES, find_chip, find_slice
from frozen_jax.errors import UserError


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_device_kind_names_its_chip(kind, name):
    assert find_chip(kind) is CHIPS[name]


def test_a_cpu_is_no_chip():
    assert find_chip("cpu") is None


@pytest.mark.parametrize(
    ("name", "topology", "devices", "hosts"),
    [
        ("v4-8", (2, 2, 1), 4, 1),
        ("v4-32", (2, 2, 4), 16, 4),
        ("v5e-1", (1, 1), 1, 1),
        ("v5e-8", (2, 4), 8, 1),
        ("v5litepod-8", (2, 4), 8, 1),
        ("v5e-16", (4, 4), 16, 4),
        ("v5e-256", (16, 16), 256, 64),
        ("v5p-8", (2, 2, 1), 4, 1),
        ("v6e-8", (2, 4), 8, 1),
        ("tpu7x-8", (2, 2, 1), 8, 1),
    ],
)
def test_slices_as_users_name_them(name, topology, devices, hosts):
    found = find_slice(name)
    assert (found.topology, found.devices, found.hosts) == (topology, devices, hosts)


def test_topology_as_the_compiler_names_it():
    """One machine needs its bounds said, v4 that both cores of a chip are one device."""
    assert find_slice("v5e-8").describe() == ("v5e:2x4", {"chips_per_host_bounds": (2, 4, 1)})
    assert find_slice("v5e-16").describe() == ("v5e:4x4", {})
    assert find_slice("v4-16").describe() == ("v4:2x2x2", {"chip_config_name": "megacore"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-7", r"--slice=v5e-7 .*near it: v5e-1, v5e-4, v5e-8"),
        ("v5-8", r"--slice=v5-8 .*v5[ep]-8"),
        ("gpu", r"--slice=gpu is not a TPU slice; name one such as v5e-8"),
    ],
)
def test_unknown_slice_names_near_ones(name, message):
    with pytest.raises(UserError, match=message):
        find_slice(name)


def test_a_name_counts_cores_or_chips():
    for name, found in SLICES.items():
        chips = found.devices // found.chip.devices
        assert int(name.rpartition("-")[2]) == chips * (1 if found.chip.name in ("v5e", "v6e") else 2)


def test_a_device_of_two_has_half_a_chip():
    chip = CHIPS["tpu7x"]
    assert chip.device_flops_per_s == pytest.approx(2307e12 / 2)
    assert CHIPS["v5e"].device_bytes_per_s == 819e9 and CHIPS["v5e"].hbm_bytes == 15.75 * GIB
