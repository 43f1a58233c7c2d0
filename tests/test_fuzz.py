"""A few hundred damaged files for each reader; `python -m tests.fuzz_readers` runs a hundred thousand."""

import numpy as np
import pytest

from frozen_jax.errors import UserError
from tests import fuzz_readers
from tests.fuzz_readers import READERS, fuzz, mutate


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_ends_in_a_result_or_a_clear_error(name):
    counts = fuzz(name, cases=400)
    assert set(counts) <= {"read", "refused"}, counts
    assert sum(counts.values()) == 400


@pytest.mark.parametrize("name", READERS)
def test_the_sound_file_is_read(name, tmp_path, monkeypatch):
    """Not refused, neither as a whole nor in one of its records: else the damage would never be reached."""

    def fail(error):
        raise AssertionError(str(error))

    monkeypatch.setattr(fuzz_readers, "check_message", fail)
    READERS[name].prepare(tmp_path)
    READERS[name].read(tmp_path)


def test_what_is_no_clear_error_is_counted(monkeypatch):
    def stumble(_):
        raise KeyError("split")

    def hang(_):
        while True:
            pass

    def ramble(_):
        raise UserError("\n".join("x" * 3000))

    assert set(fuzz("tar", cases=2, read=stumble)) == {"FAILED KeyError \"'split'\""}
    monkeypatch.setattr(fuzz_readers, "SECONDS", 1)
    assert set(fuzz("tar", cases=1, read=hang)) == {"FAILED TimeoutError 'more than 1 s'"}
    assert set(fuzz("tar", cases=1, read=ramble)) == {"refused"}  # UserError itself keeps to one short line


def test_a_case_is_a_pure_function_of_its_number():
    made = [mutate(b"abcdefgh" * 8, np.random.default_rng([1, case])) for case in range(50)]
    assert made == [mutate(b"abcdefgh" * 8, np.random.default_rng([1, case])) for case in range(50)]
    assert len(set(made)) > 45
