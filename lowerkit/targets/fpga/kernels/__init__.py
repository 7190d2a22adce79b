"""Layers as kernels in the integer language, one idea a file."""
