"""The float reference: onnxruntime on a graph, with any intermediate values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from lowerkit.errors import ModelError


class Reference:
    """Runs a model in onnxruntime on the CPU.

    Args:
        model: any stage of a graph; method operators run through their function bodies.
        taps: names of intermediate values to return beside the graph's outputs.
        threads: intra-op threads.
        optimise: let onnxruntime fuse and reorder. Off by default: the reference computes what the
            graph says, operator by operator.
    """

    def __init__(
        self, model: ir.Model, taps: Sequence[str] = (), *, threads: int = 1, optimise: bool = False
    ) -> None:
        proto = ir.serde.serialize_model(model)
        present = {output.name for output in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps if name not in present)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, straight from Exception
            raise ModelError(f"onnxruntime, the float reference, cannot load the graph: {error}") from None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; returns graph outputs and taps by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
