"""A part of a model as a model of its own, and the data that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort


def cut(
    model: onnx.ModelProto,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
) -> onnx.ModelProto:
    """What lies between some values of a model, which is changed.

    Args:
        inputs, outputs: value -> its name in the part.
        shapes: of all of these values, which the model may leave open; they are float32.
    """
    kept = [info for info in model.graph.value_info if info.name not in shapes]
    del model.graph.value_info[:]
    made = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()]
    model.graph.value_info.extend([*kept, *made])
    part = onnx.utils.Extractor(model).extract_model(list(inputs), list(outputs))
    names = {**inputs, **outputs}
    for node in part.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    for info in (*part.graph.input, *part.graph.output):
        info.name = names[info.name]
    del part.graph.value_info[:]
    onnx.checker.check_model(part)
    return part


def values(
    model: onnx.ModelProto, names: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Values of a model, which is changed, for its inputs."""
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(list(names), dict(inputs))
    return found
