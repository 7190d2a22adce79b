"""The he target: inference on encrypted numbers with CKKS.

A graph comes down through three languages, each small enough to print and to run in numpy: a *tensor program* of
affine maps, products and polynomials (`program`), a *packed program* on vectors of slots (`packed`), and a
*levelled program* with levels, scales and rescaling (`levelled`). `packing` turns the first into the second. What
runs afterwards, `runtime`, is copied into the artifact and imports nothing of lowerkit.
"""
