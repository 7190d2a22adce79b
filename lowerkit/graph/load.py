"""load: an ONNX file becomes a checked graph of static shapes, at its own opset, as its author wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from lowerkit.errors import ModelError
from lowerkit.graph import qonnx
from lowerkit.graph.domain import describe_node
from lowerkit.graph.names import name_nodes
from lowerkit.graph.opset import upgrade
from lowerkit.graph.read import read_proto
from lowerkit.graph.shapes import infer_shapes, static_shape
from lowerkit.reference import Reference

__all__ = ["load_model", "upgrade"]

#: An IR version that every supported onnxruntime loads. Nothing in a file of a later one is lost by the label;
#: an opset that needs a later one gets it.
_NEWEST_IR = 10
#: Operators that multiply or normalise by their weights, where an infinity makes every result inf or NaN.
_WEIGHTED = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "RMSNormalization",
        "RNN",
    }
)


def load_model(path: str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """Read the ONNX file at `path`.

    The result is what its author wrote, at its own opset: nodes, weights (held in memory) and names
    are kept. Added are static shapes of all values, and names for unnamed nodes (`Op_<index>`). An input
    that is also an initializer is a weight.

    Weights that are NaN are refused. Infinities are legal, for exporters write masks with them, except in
    a tensor that an operator of MatMul's, Conv's or a normalisation's kind reads directly.

    Args:
        path: an ONNX file, at most 2 GiB with its external data, which must lie in the file's folder.
        shapes: graph input name -> its shape. Needed for each input with a symbolic dimension; must agree
            with the dimensions that are fixed, and give equal values to equal symbols.

    Raises:
        ModelError: when the file cannot be read, is invalid, or is not fully specified.
    """
    model_proto = read_proto(Path(path))
    _drop_weight_inputs(model_proto)
    for value in (*model_proto.graph.input, *model_proto.graph.output):
        _check_tensor(value)
    _fix_inputs(model_proto, shapes or {})
    declared = _forget_shapes(model_proto)
    imports = list(model_proto.opset_import)
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    # From IR version 4 on, a weight need not be a graph input.
    model_proto.ir_version = max(4, needed, min(model_proto.ir_version, _NEWEST_IR))
    model = ir.serde.deserialize_model(model_proto)
    _unpack_weights(model)
    qonnx.define(model)
    name_nodes(model)
    _check_weights(model)
    infer_shapes(model)
    _check_outputs(model, declared)
    Reference(model)
    return model


def _unpack_weights(model: ir.Model) -> None:
    """Hold weights as arrays: a tensor within a protobuf message is copied whenever it is read."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.TensorProtoTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _drop_weight_inputs(model: onnx.ModelProto) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if not inputs:
        raise ModelError("the graph has no inputs: its outputs are constants")


def _check_tensor(value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        reason = f"'{value.name}' is a {(kind or 'untyped').removesuffix('_type')}"
    elif value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        reason = f"'{value.name}' is a tensor of strings"
    else:
        return
    raise ModelError(f"graph input or output {reason}; only tensors of numbers are understood")


def _fix_inputs(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Write `shapes` into the graph's inputs."""
    names = [value.name for value in model.graph.input]
    for name in shapes:
        if name not in names:
            raise ModelError(
                f"a shape is given for '{name}', which is no input", hint=f"inputs: {', '.join(names)}"
            )
    symbols: dict[str, tuple[int, str]] = {}
    for value in model.graph.input:
        given = shapes.get(value.name)
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") and given is None:
            raise ModelError(
                f"input '{value.name}' has no shape", hint=f"pass --shape {value.name}:1,128 or the like"
            )
        if not tensor.HasField("shape"):
            tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in given or ())
        dims = list(tensor.shape.dim)
        written = f"[{', '.join(_dim(dim) for dim in dims)}]"
        if given is None:
            if any(dim.dim_value <= 0 for dim in dims):
                example = ",".join(
                    str(dim.dim_value) if dim.dim_value > 0 else _guess(i) for i, dim in enumerate(dims)
                )
                raise ModelError(
                    f"input '{value.name}' has shape {written}, which is not fixed",
                    hint=f"pass --shape {value.name}:{example} (with the sizes you want)",
                )
            continue
        asked = f"shape {list(given)} of input '{value.name}'"
        if len(given) != len(dims):
            raise ModelError(f"{asked} has {len(given)} dimensions, the model's {written} has {len(dims)}")
        for dim, size in zip(dims, given, strict=True):
            if size <= 0:
                raise ModelError(f"{asked} has a dimension that is not positive")
            if dim.dim_value > 0 and dim.dim_value != size:
                raise ModelError(f"{asked} contradicts the model's {written}")
            # Some exporters write "?" for every unknown dimension: not a symbol.
            if dim.dim_param.strip("? "):
                known, other = symbols.setdefault(dim.dim_param, (size, value.name))
                if known != size:
                    raise ModelError(
                        f"{asked} makes '{dim.dim_param}' {size}, but input '{other}' makes it {known}"
                    )
            dim.dim_value = size


def _dim(dim: onnx.TensorShapeProto.Dimension) -> str:
    return str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?"


def _guess(axis: int) -> str:
    return "1" if axis == 0 else "128"


def _forget_shapes(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Remove shapes that were written for symbolic inputs. Returns the outputs' types as declared.

    Results of operators outside the standard domain, which onnx cannot infer, keep theirs.
    """
    foreign = {name for node in model.graph.node if node.domain for name in node.output}
    kept = [info for info in model.graph.value_info if info.name in foreign]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    declared = {}
    for value in model.graph.output:
        declared[value.name] = onnx.TypeProto.FromString(value.type.SerializeToString())
        # onnxruntime, too, only warns where a declared output shape is wrong.
        value.type.tensor_type.ClearField("shape")
    return declared


def _check_outputs(model: ir.Model, declared: Mapping[str, onnx.TypeProto]) -> None:
    """Every output has a static shape: inferred, or declared where onnx has no inference."""
    for value in model.graph.outputs:
        name = value.name or ""
        if static_shape(value) is not None:
            continue
        dims = declared[name].tensor_type.shape.dim
        if declared[name].tensor_type.HasField("shape") and all(dim.dim_value > 0 for dim in dims):
            value.shape = ir.Shape([dim.dim_value for dim in dims])
            continue
        producer = value.producer()
        where = describe_node(producer) if producer is not None else None
        why = "it depends on the data, or on an operator that onnx infers no shape for"
        raise ModelError(f"output '{name}' has no static shape: {why}", node=where)


def _check_weights(model: ir.Model) -> None:
    """Refuse NaN in any floating-point constant, and infinities where they are multiplied by."""
    for graph in model.graphs():
        constants = [*graph.initializers.values()]
        constants += [node.outputs[0] for node in graph if node.op_type == "Constant" and node.domain == ""]
        for value in constants:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or not tensor.dtype.is_floating_point():
                continue
            array = tensor.numpy()
            if np.isnan(array).all() and all(n.op_type == "Where" for n in value.consumers()):
                continue  # the branch for what has no value, e.g. the variance of nothing, which is not taken
            if nans := int(np.count_nonzero(np.isnan(array))):
                raise ModelError(f"weight '{value.name}' has {nans} NaN of {array.size} elements")
            user = next((n for n in value.consumers() if n.op_type in _WEIGHTED and n.domain == ""), None)
            if user is not None and (infinite := int(np.count_nonzero(np.isinf(array)))):
                reason = f"weight '{value.name}' has {infinite} infinities of {array.size} elements"
                raise ModelError(reason, node=describe_node(user))
