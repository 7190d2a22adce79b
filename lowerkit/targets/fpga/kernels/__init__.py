"""Layers as kernels of the integer language. Each function returns the kernel and its schedule."""
