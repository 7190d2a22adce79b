"""Operators that lowerkit emits itself, as tensor expressions: one idea per file."""

from __future__ import annotations

from lowerkit.targets.cpu.importer import Converter
from lowerkit.targets.cpu.kernels import conv_bf16, conv_int8
from lowerkit.targets.cpu.kernels.attention import fused_attention
from lowerkit.targets.cpu.kernels.bfloat16 import cast
from lowerkit.targets.cpu.kernels.extremes import reduce_max, reduce_min
from lowerkit.targets.cpu.kernels.gather import gather
from lowerkit.targets.cpu.kernels.gemm import machine, operators
from lowerkit.targets.cpu.kernels.hard_swish import hard_swish
from lowerkit.targets.cpu.kernels.layer_norm import layer_normalization
from lowerkit.targets.cpu.kernels.minmax import elementwise_max, elementwise_min
from lowerkit.targets.cpu.kernels.softmax import exact_softmax, poly_softmax
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
    "OnlineSoftmax": exact_softmax,
    "OnlineSoftmaxTopK": online_softmax_topk,
    "PolySoftmax": poly_softmax,
    "ReduceMax": reduce_max,
    "ReduceMin": reduce_min,
    "Softmax": exact_softmax,
    "TopK": top_k,
    "TwoPassSoftmax": exact_softmax,
    "UnifiedMaxSoftmax": unified_max_softmax,
}


def converters(cpu: str) -> dict[str, Converter]:
    """All kernels, those of matrix products and of convolutions in few bits for processor `cpu`."""
    kind = machine.machine(cpu)
    return {
        **CONVERTERS,
        **operators.converters(kind),
        **conv_bf16.converters(kind),
        **conv_int8.converters(kind),
    }
