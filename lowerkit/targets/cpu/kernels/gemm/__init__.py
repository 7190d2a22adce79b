"""Matrix products by templates: no tuning, register tiles chosen by shape and by processor.

An operator becomes a tensor expression over packed weights, marked with its kind (operators.py), which TVM fuses
with the elementwise operators that follow it; the marked function's loops are then written anew (template.py).
"""
