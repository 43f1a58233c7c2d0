"""Thin command lines over the package: `python -m frozen_jax.tools.NAME`."""
