"""These tests compile more than they run."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def least_compile_effort():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
