"""Operators that lowerkit emits itself, as tensor expressions: one idea per file."""

from __future__ import annotations

from lowerkit.targets.cpu.importer import Converter
from lowerkit.targets.cpu.kernels.attention import fused_attention
from lowerkit.targets.cpu.kernels.bfloat16 import cast
from lowerkit.targets.cpu.kernels.exact_softmax import online_softmax, two_pass_softmax
from lowerkit.targets.cpu.kernels.extremes import reduce_max, reduce_min
from lowerkit.targets.cpu.kernels.gather import gather
from lowerkit.targets.cpu.kernels.gemm import machine, operators
from lowerkit.targets.cpu.kernels.hard_swish import hard_swish
from lowerkit.targets.cpu.kernels.layer_norm import layer_normalization
from lowerkit.targets.cpu.kernels.minmax import elementwise_max, elementwise_min
from lowerkit.targets.cpu.kernels.poly_softmax import poly_softmax
from lowerkit.targets.cpu.kernels.softmax_topk import online_softmax_topk
from lowerkit.targets.cpu.kernels.top_k import top_k
from lowerkit.targets.cpu.kernels.unified_softmax import unified_max_softmax

#: Operator -> its kernel, for every processor. Standard names override TVM's front end; the others are of the
#: domain `lowerkit`.
CONVERTERS: dict[str, Converter] = {
    "Cast": cast,
    "FusedAttention": fused_attention,
    "Gather": gather,
    "HardSwish": hard_swish,
    "LayerNormalization": layer_normalization,
    "Max": elementwise_max,
    "Min": elementwise_min,
    "OnlineSoftmax": online_softmax,
    "OnlineSoftmaxTopK": online_softmax_topk,
    "PolySoftmax": poly_softmax,
    "ReduceMax": reduce_max,
    "ReduceMin": reduce_min,
    "TopK": top_k,
    "TwoPassSoftmax": two_pass_softmax,
    "UnifiedMaxSoftmax": unified_max_softmax,
}


def converters(cpu: str) -> dict[str, Converter]:
    """All kernels, those of matrix products for processor `cpu`."""
    return {**CONVERTERS, **operators.converters(machine.machine(cpu))}
