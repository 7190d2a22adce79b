"""lowerkit's integer kernels as layers of hls4ml, and designs as hls4ml models.

hls4ml is imported when one of these functions is called, not before. Bits pass between hls4ml's `ap_fixed` arrays and
a kernel's codes unchanged, so that a layer gives in hls4ml what `design.simulate` gives.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx

from lowerkit.errors import ToolError
from lowerkit.targets.fpga.design import Design

__all__ = ["open_design", "register", "take_over"]


def register() -> None:
    """Register the layers, their templates and ONNX handlers with hls4ml's Vitis and Vivado backends.

    A second call does nothing. From then on `hls4ml.converters.convert_from_onnx_model` reads the operators for which
    hls4ml has no handler of its own (LayerNormalization, Gelu, lowerkit::FixedSoftmax, ...) as lowerkit's kernels; it
    goes on reading the others as its own layers, unless `take_over` has renamed them.

    Raises:
        ToolError: where hls4ml is not installed.
    """
    _need_hls4ml()
    from lowerkit.targets.fpga.hls4ml.registration import register as registered

    registered()


def open_design(
    design: Design | str | Path, output_dir: str | Path, *, backend: str = "Vitis", **settings: Any
) -> Any:
    """A design as an hls4ml `ModelGraph`, every layer one of lowerkit's kernels.

    `compile()` and `predict(x)` work on it. `predict` takes float arrays [samples, ...] that are C-contiguous, a list
    of them in the order of `design.inputs` if there are several, and returns flat arrays [samples, size] in the order
    of `design.outputs`. Inputs are rounded half to even and saturated, as `design.codes_of` does; results are those of
    `design.simulate`, bit for bit. Formats of more than 24 bits need float64 arrays. Layers of an artifact that share a
    unit get kernels of their own.

    Args:
        design: a design, or the directory of an artifact that was compiled for the target fpga.
        output_dir: where hls4ml writes its project.
        backend: "Vitis" or "Vivado".
        settings: more of hls4ml's own, for example part, clock_period or project_name.

    Raises:
        ToolError: where hls4ml is not installed.
        ArtifactError: where the directory is no artifact of the target fpga.
        UnsupportedError: for a design that hls4ml's graphs cannot say: an output that is an input, or is there twice;
            layers that share a kernel.
    """
    _need_hls4ml()
    from lowerkit.targets.fpga.hls4ml import graph

    found = design if isinstance(design, Design) else graph.design_in(Path(design))
    register()
    return graph.model_of(found, Path(output_dir), backend, settings)


def take_over(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which lowerkit's kernels stand for operators that hls4ml reads, but gets wrong.

    MatMul, Softmax and Transpose become LowerkitMatMul, LowerkitSoftmax and LowerkitTranspose, which `register` has
    handlers for. The copy is for `hls4ml.converters` alone. Its shapes are inferred, and the nodes named.

    Raises:
        ToolError: where hls4ml is not installed.
        UnsupportedError: for an opset before 13, in which Softmax was another function.
    """
    _need_hls4ml()
    from lowerkit.targets.fpga.hls4ml import onnx_reader

    return onnx_reader.take_over(model)


def _need_hls4ml() -> None:
    if importlib.util.find_spec("hls4ml") is None:
        raise ToolError("hls4ml is not installed", hint="pip install lowerkit[fpga]")
