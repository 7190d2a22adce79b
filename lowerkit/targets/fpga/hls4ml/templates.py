"""The C++ that hls4ml writes for a layer: the kernel as it is printed everywhere, and a call of it."""

from __future__ import annotations

import math

from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.hls4ml.layers import LowerkitKernel, LowerkitNode
from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.expr import Array
from lowerkit.targets.fpga.lang.program import Kernel

HEADER = "nnet_utils/nnet_lowerkit.h"
LAYERS = (LowerkitKernel, LowerkitNode)
#: The first layer of a project brings the helpers of all.
_HELPERS = f"#ifndef LOWERKIT_HELPERS_\n#define LOWERKIT_HELPERS_\n{cpp.HELPERS}#endif\n"


class KernelConfig(LayerConfigTemplate):  # type: ignore[misc]
    """The kernel, in `parameters.h`, in a namespace of its layer."""

    def __init__(self) -> None:
        super().__init__(LAYERS)

    def format(self, node: LowerkitKernel | LowerkitNode) -> str:
        """The text. Raises UnsupportedError for streams."""
        if node.model.config.get_config_value("IOType") != "io_parallel":
            raise UnsupportedError(
                f"layer '{node.name}': lowerkit's kernels read and write arrays, not streams",
                hint="set io_type to io_parallel",
            )
        kernel = node.kernel()
        parts = [cpp.constants(kernel), cpp.function(kernel), _on_numbers(kernel)]
        body = "\n".join(part for part in parts if part)
        return f"{_HELPERS}\nnamespace {_namespace(node)} {{\n{body}}}\n"


class KernelCall(FunctionCallTemplate):  # type: ignore[misc]
    """The call, in the top function."""

    def __init__(self) -> None:
        super().__init__(LAYERS, [HEADER])

    def format(self, node: LowerkitKernel | LowerkitNode) -> str:
        """The text."""
        read = [node.get_input_variable(name).name for name in node.inputs]
        written = [node.get_output_variable(name).name for name in node.outputs]
        return f"{_namespace(node)}::on_numbers({', '.join([*read, *written])});"


def _namespace(node: LowerkitKernel | LowerkitNode) -> str:
    return f"lowerkit_layer{node.index}"


def _on_numbers(kernel: Kernel) -> str:
    """A function that calls the kernel on hls4ml's numbers."""
    arrays = [*kernel.inputs, *kernel.outputs]
    types = ", ".join(f"class {a.name}_T" for a in arrays)
    parameters = [f"const {_parameter(a)}" for a in kernel.inputs] + [_parameter(a) for a in kernel.outputs]
    lines = [f"    {cpp.type_of(a.range)} {a.name}_codes[{_size(a)}];" for a in arrays]
    lines += [f"    lowerkit::to_codes<{_size(a)}>({a.name}, {a.name}_codes);" for a in kernel.inputs]
    lines.append(f"    {kernel.name}({', '.join(f'{a.name}_codes' for a in arrays)});")
    lines += [f"    lowerkit::to_numbers<{_size(a)}>({a.name}_codes, {a.name});" for a in kernel.outputs]
    return "\n".join([f"template <{types}> void on_numbers({', '.join(parameters)}) {{", *lines, "}", ""])


def _parameter(array: Array) -> str:
    return f"{array.name}_T {array.name}[{_size(array)}]"


def _size(array: Array) -> int:
    return math.prod(array.shape)
