"""Benchmarks: each asserts the answer first, then measures both sides in turn in one run."""
