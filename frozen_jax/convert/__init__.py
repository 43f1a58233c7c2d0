"""Weights in and out: one table per family, and the readers of file formats."""
