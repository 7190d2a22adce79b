"""Adding constants to a graph."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of `graph` that holds `array`: under `name`, or `name.1`, ... where that is taken.

    Equal arrays asked for under one name are stored once.
    """
    for key in itertools.chain([name], (f"{name}.{index}" for index in itertools.count(1))):
        found = graph.initializers.get(key)
        if found is None:
            break
        tensor = found.const_value.numpy() if found.const_value is not None else None
        if tensor is not None and tensor.dtype == array.dtype and np.array_equal(tensor, array):
            return found
    value = ir.Value(
        name=key,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=key),
    )
    graph.register_initializer(value)
    return value
