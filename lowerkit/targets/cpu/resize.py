"""Resize as TVM takes it: nearest by gathers along the axes, the rest with the sizes of all axes given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


def nearest(op: Tape, node: ir.Node) -> ir.Value:
    """The elements that ONNX's Resize names, by one Gather an axis.

    TVM computes positions in float32 on the fly, where a tie may fall to either side.
    """
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    assert x.shape is not None
    assert y.shape is not None
    before, after = x.shape.numpy(), y.shape.numpy()
    scales = _scales(node)
    attributes = node.attributes
    mode = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = _ROUNDING[attributes.get_string("nearest_mode", "round_prefer_floor")]
    for axis, (size, target, scale) in enumerate(zip(before, after, scales, strict=True)):
        if (size, scale) == (target, 1):
            continue
        position = _POSITION[mode](np.arange(target, dtype=np.float64), size, target, scale)
        index = np.clip(rounding(position), 0, size - 1).astype(np.int64)
        x = op.op("Gather", [x, op.op("Constant", [], {"value": ir.tensor(index)})], {"axis": axis})
    return op.op("Identity", [x])


def to_shape(op: Tape, node: ir.Node) -> ir.Value:
    """The same Resize, told the sizes and the region of interest of all axes."""
    shape = node.outputs[0].shape
    assert shape is not None
    dropped = ("axes", "keep_aspect_ratio_policy")
    attributes = {name: a for name, a in node.attributes.items() if name not in dropped}
    roi = node.inputs[1] if len(node.inputs) > 1 and _crops(node) else None
    if roi is not None and "axes" in node.attributes:
        tensor = _constant(node, 1)
        assert tensor is not None  # by is_varying_crop
        axes, region = list(_axes(node)), np.repeat([0.0, 1.0], len(shape)).reshape(2, -1)
        region[:, axes] = tensor.numpy().reshape(2, -1)
        roi = op.op("Constant", [], {"value": ir.tensor(region.ravel().astype(tensor.dtype.numpy()))})
    sizes = op.op("Constant", [], {"value": ir.tensor(np.array(shape.numpy(), np.int64))})
    return op.op("Resize", [node.inputs[0], roi, None, sizes], attributes)


def is_nearest(node: ir.Node) -> bool:
    """Whether `nearest` can replace `node`."""
    x, shape = node.inputs[0], node.outputs[0].shape
    return (
        node.attributes.get_string("mode", "nearest") == "nearest"
        and node.attributes.get_string("coordinate_transformation_mode", "half_pixel") in _POSITION
        and x is not None
        and x.shape is not None
        and x.shape.is_static()
        and shape is not None
        and shape.is_static()
        and not _varies(node, 2)
        and not _varies(node, 3)
    )


def is_varying_crop(node: ir.Node) -> bool:
    """Whether the region of interest is not a constant and not of all axes."""
    return "axes" in node.attributes and _crops(node) and _varies(node, 1)


def scales_inexactly(node: ir.Node) -> bool:
    """Whether a factor is other than the ratio of the sizes, which is what TVM divides by."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or y.shape is None or _varies(node, 2) or _varies(node, 3):
        return True
    before, after = np.array(x.shape.numpy(), float), np.array(y.shape.numpy(), float)
    return bool(np.any(np.abs(np.array(_scales(node)) * before - after) > 1e-3))


def _scales(node: ir.Node) -> list[float]:
    """The factor of each axis: given, or of the sizes, or one for all axes to keep the aspect ratio."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    assert x.shape is not None
    assert y.shape is not None
    before, after = np.array(x.shape.numpy(), float), np.array(y.shape.numpy(), float)
    factors = np.ones(len(before))
    axes = list(_axes(node))
    given = _constant(node, 2)
    if given is not None:
        factors[axes] = given.numpy()
        return [float(f) for f in factors]
    factors[axes] = after[axes] / before[axes]
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and _has(node, 3):
        tensor = _constant(node, 3)
        assert tensor is not None  # by is_nearest and scales_inexactly
        ratios = tensor.numpy() / before[axes]
        factors[axes] = min(ratios) if policy == "not_larger" else max(ratios)
    return [float(f) for f in factors]


def _axes(node: ir.Node) -> tuple[int, ...]:
    x = node.inputs[0]
    assert x is not None
    assert x.shape is not None
    rank = len(x.shape)
    return tuple(a % rank for a in node.attributes.get_ints("axes", tuple(range(rank))))


def _crops(node: ir.Node) -> bool:
    return node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"


def _has(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _constant(node: ir.Node, index: int) -> ir.TensorProtocol | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else ir.convenience.get_const_tensor(value)


def _varies(node: ir.Node, index: int) -> bool:
    return _has(node, index) and _constant(node, index) is None


# ONNX's definitions (operator Resize): where an output's position lies in the input, and which element it takes.


def _half_pixel(i: np.ndarray, size: int, target: int, scale: float) -> np.ndarray:
    return (i + 0.5) / scale - 0.5


def _symmetric(i: np.ndarray, size: int, target: int, scale: float) -> np.ndarray:
    # The adjustment keeps the centre where it was, although the target was rounded to a whole number.
    adjustment = target / (scale * size)
    return size / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5


def _pytorch(i: np.ndarray, size: int, target: int, scale: float) -> np.ndarray:
    return _half_pixel(i, size, target, scale) if scale * size > 1 else np.zeros_like(i)


def _corners(i: np.ndarray, size: int, target: int, scale: float) -> np.ndarray:
    return i * (size - 1) / (scale * size - 1) if scale * size != 1 else np.zeros_like(i)


def _asymmetric(i: np.ndarray, size: int, target: int, scale: float) -> np.ndarray:
    return i / scale


_POSITION: dict[str, Callable[[np.ndarray, int, int, float], np.ndarray]] = {
    "align_corners": _corners,
    "asymmetric": _asymmetric,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": _pytorch,
}
_ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}
