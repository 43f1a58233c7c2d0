"""SHA256SUMS: every change of a listed file is named; what ships is listed whole."""

import random
import shutil
import subprocess

import pytest

from frozen_jax.build import PACKAGE
from frozen_jax.errors import UserError
from frozen_jax.language_model import load_lm
from frozen_jax.models.vision import build_vision
from frozen_jax.pretrained_vision import load_vision
from frozen_jax.sums import SUMS, format_sums, verify_file, verify_sums

SHIPPED = sorted(path.parent for path in (PACKAGE / "assets").glob("*/model.safetensors"))


@pytest.fixture
def copy(tiny_lm, tmp_path):
    return shutil.copytree(tiny_lm, tmp_path / "lm")


@pytest.mark.parametrize("directory", SHIPPED, ids=lambda path: path.name)
def test_what_ships_is_listed_and_whole(directory):
    verify_sums(directory)
    listed = {line.split()[1] for line in (directory / SUMS).read_text().splitlines()}
    assert listed == {path.name for path in directory.iterdir()} - {SUMS, "README.md"}


def test_every_flipped_bit_is_named(copy):
    rng = random.Random(0)
    listed = [line.split()[1] for line in (copy / SUMS).read_text().splitlines()]
    assert set(listed) == {path.name for path in copy.iterdir()} - {SUMS}
    for name in listed:
        content = (copy / name).read_bytes()
        for _ in range(20):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (copy / name).write_bytes(flipped)
            with pytest.raises(UserError, match=rf"/{name} is not what SHA256SUMS beside it lists"):
                verify_sums(copy)
        (copy / name).write_bytes(content)
    load_lm(copy)
    (copy / listed[-1]).unlink()
    with pytest.raises(UserError, match=rf"{listed[-1]} .* lists .absent"):
        load_lm(copy)


@pytest.mark.parametrize("line", ["abc  config.json", f"{'0' * 64}  ../config.json", f"{'0' * 64}"])
def test_a_damaged_list_is_refused_and_leads_nowhere(copy, line):
    (copy / SUMS).write_text(f"{line}\n")
    with pytest.raises(UserError, match="is damaged; restore the directory"):
        verify_sums(copy)


@pytest.mark.parametrize("whole", [False, True], ids=["file", "directory"])
def test_one_file_of_weights_is_compared_with_the_list_beside_it(tmp_path, whole):
    """As `tools.fetch_data` leaves a language model and an encoder."""
    opened = {
        "lm": ("tiny.gguf", lambda path: load_lm(path)),
        "encoder": ("tiny.pth", lambda path: load_vision(str(path), build_vision("efficientnet_lite0"))),
    }
    for folder, (name, read) in opened.items():
        file = tmp_path / folder / name
        file.parent.mkdir()
        file.write_bytes(bytes(64))
        (file.parent / SUMS).write_text(f"{'0' * 64}  pictures/a.png\n" * (not whole) + f"{'1' * 64}  {name}\n")
        with pytest.raises(UserError, match=rf"/{name} is not what SHA256SUMS beside it lists"):
            read(file.parent if whole else file)
        (file.parent / SUMS).write_text(format_sums([(name, file)]))
        with pytest.raises(UserError) as caught:  # 64 zeros are no weights
            read(file.parent if whole else file)
        assert SUMS not in str(caught.value)


def test_lists_of_other_programs_are_read_and_of_other_files_passed_over(copy):
    (sums := copy / SUMS).write_text(
        "# of today\n\n" + "".join(f"{line[:64].upper()} *./{line[66:]}\n" for line in sums.read_text().splitlines())
    )
    verify_sums(copy)
    weights = copy / "model.safetensors"
    (line,) = (line for line in sums.read_text().splitlines() if line.endswith(weights.name))
    sums.write_text(f"SHA256 (some.iso) = {'a' * 64}\n{'a' * 64} *some.iso\nabc  pictures/{weights.name}\n{line}\n")
    verify_file(weights)
    sums.write_text(sums.read_text().replace(line, f"{'0' * 64} *{weights.name}"))
    with pytest.raises(UserError, match="is not what SHA256SUMS beside it lists"):
        verify_file(weights)
    sums.write_text(f"abc  {weights.name}\n")
    with pytest.raises(UserError, match="is damaged; restore the directory"):
        verify_file(weights)


def test_the_systems_program_reads_the_list(copy):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=copy, check=True, capture_output=True)
