"""The cpu target: ONNX → Relax → scheduled TIR → one shared library, with TVM as the compiler.

blocker   support.py    which operators TVM lacks or gets wrong
import    importer.py   the lowered graph as Relax; kernels/ holds what lowerkit emits itself
schedule  schedule.py   loop schedules for what TVM legalised
build     build.py      Relax → model.so
run       runner.py     executes the library without the compiler; also `run.py` of an artifact
"""
