"""The float reference: onnxruntime on a graph, with any intermediate values."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from lowerkit.errors import ModelError

#: Weights of more bytes are not serialised.
_SMALL = 4096
#: Samples that run at the same time at most: the values of all of them are in memory.
_AHEAD = 4
#: Types that onnxruntime takes from numpy.
_IN_NUMPY = frozenset(np.dtype(name) for name in ["?", *np.typecodes["AllInteger"], "float32", "float64"])


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
        proto, self._weights = _with_weights_apart(model)
        present = {output.name for output in proto.graph.output}
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps if name not in present)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
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

    def over(self, samples: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """The results for each of `samples`, in their order; a few samples run at the same time."""
        ahead = min(os.cpu_count() or 1, _AHEAD)
        with ThreadPoolExecutor(ahead) as pool:
            running: deque[Future[dict[str, np.ndarray]]] = deque()
            for sample in samples:
                running.append(pool.submit(self, sample))
                if len(running) > ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()


def _with_weights_apart(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ort.OrtValue]]:
    """`model` with big weights declared alone, and those weights by name, in the memory where the model has them."""
    light, weights = model.clone(), {}
    for name, value in light.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL or not value.uses():  # it forgets what nothing reads
            continue
        array = tensor.numpy()
        if array.dtype not in _IN_NUMPY:
            continue
        weights[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        value.const_value = ir.ExternalTensor(
            "", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(array.shape), name=name
        )
    return ir.serde.serialize_model(light), weights
