"""Metrics in numpy, by the rules of their official implementations."""
