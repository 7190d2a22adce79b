"""The cpu target: ONNX → Relax → scheduled TIR → one C library, with TVM as the compiler of its kernels.

blocker   support.py    which operators TVM lacks or gets wrong
import    importer.py   the lowered graph as Relax; kernels/ holds what lowerkit emits itself
schedule  schedule.py   loop schedules for what TVM legalised
program   program.py    Relax → kernels in order and their memory (arena.py), written as C (c_source.py)
kernels   native.py     TIR → an object file of functions that take pointers
build     build.py      all of it → model.so, with the C runtime in runtime/
run       runner.py     calls the library; also `run.py` of an artifact
"""
