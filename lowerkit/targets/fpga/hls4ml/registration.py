"""Makes hls4ml know the layers: once in a process."""

from __future__ import annotations

import functools
from pathlib import Path

from hls4ml.backends import get_backend
from hls4ml.converters.onnx_to_hls import get_supported_onnx_layers, register_onnx_layer_handler
from hls4ml.model.flow import update_flow
from hls4ml.model.layers import Constant, Layer, register_layer
from hls4ml.model.optimizer import OptimizerPass, register_pass

from lowerkit.targets import fpga
from lowerkit.targets.fpga.hls4ml.layers import LowerkitNode
from lowerkit.targets.fpga.hls4ml.onnx_reader import operators, read_node
from lowerkit.targets.fpga.hls4ml.templates import HEADER, LAYERS, KernelCall, KernelConfig


class DropReadConstants(OptimizerPass):  # type: ignore[misc]
    """Constants that a kernel holds are no longer nodes: nothing would read them."""

    def match(self, node: Layer) -> bool:
        """Constants without a reader, beside a `LowerkitNode`."""
        if not isinstance(node, Constant) or node.get_output_nodes():
            return False
        return any(isinstance(other, LowerkitNode) for other in node.model.get_layers())

    def transform(self, model: object, node: Layer) -> bool:
        """Take it out."""
        node.model.remove_node(node)
        return True


@functools.cache
def register() -> None:
    """See the package's `register`."""
    for layer in LAYERS:
        register_layer(layer.__name__, layer)
    # Vitis runs the templates of Vivado before its own.
    for template in (KernelConfig, KernelCall):
        get_backend("vivado").register_template(template)
    header = Path(next(iter(fpga.__path__))) / "templates" / Path(HEADER).name
    for backend in ("vivado", "vitis"):
        get_backend(backend).register_source(header.absolute())
    register_pass("lowerkit_drop_read_constants", DropReadConstants)
    update_flow("parse_qonnx", add_optimizers=["lowerkit_drop_read_constants"])
    taken = set(get_supported_onnx_layers())
    for operator in operators():
        if operator not in taken:
            register_onnx_layer_handler(operator, read_node)
