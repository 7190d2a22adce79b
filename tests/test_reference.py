"""The float reference, which takes big weights from where they are."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowerkit.reference import _SMALL, Reference

_TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[{n}] x, bool c) => (float[{n}] y, float[{n}] z, float[{n}] read)
<float[{n}] read, float[{n}] inner, float[{n}] unused, float[{n}] both>
{{
    y = Add (x, both)
    z = If (c) <
        then_branch = t () => (float[{n}] a) {{ a = Mul (x, inner) }},
        else_branch = e () => (float[{n}] b) {{ b = Sub (x, both) }}
    >
}}
"""


@pytest.mark.parametrize("size", [3, _SMALL])
def test_weights_wherever_they_are_read(size: int) -> None:
    proto = onnx.parser.parse_model(_TEXT.format(n=size))
    del proto.graph.initializer[:]
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(size).astype(np.float32) for name in ("read", "inner", "unused", "both")
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    reference = Reference(ir.serde.deserialize_model(proto))
    x = rng.standard_normal(size).astype(np.float32)
    for condition, z in ((True, x * weights["inner"]), (False, x - weights["both"])):
        found = reference({"x": x, "c": np.array(condition)})
        np.testing.assert_array_equal(found["y"], x + weights["both"])
        np.testing.assert_array_equal(found["z"], z)
        np.testing.assert_array_equal(found["read"], weights["read"])
