"""Measure the diversity of instruction data and choose datasets by it: numpy, pyarrow and numba, no Ray, no torch."""
