"""Layers as kernels of the integer language, one idea a file."""
