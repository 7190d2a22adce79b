"""Shape inference: onnx's own, given the values of the shape arithmetic that exporters leave in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from lowerkit.errors import ModelError
from lowerkit.graph.domain import describe_node
from lowerkit.reference import Reference

#: Constants above this many bytes hold no shape arithmetic. onnx's C++ code is spared them too, because
#: what it is given must serialise below 2 GiB and is copied several times.
_SMALL = 4096
#: Rounds of inference. Each resolves shapes that depend on arithmetic over the shapes known before.
_ROUNDS, _MANY_ROUNDS = 16, 256
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
#: What says how numbers are stored; its results are no shape arithmetic.
_STORAGE = frozenset({"DequantizeLinear", "QuantizeLinear"})


def infer_shapes(model: ir.Model) -> None:
    """Give every value of `model` its dtype and shape, in place; strict, with data propagation.

    With static graph inputs every shape becomes static, save those that depend on data (NonZero, ...)
    and results of operators that onnx has no inference for (contrib operators). Nodes and weights stay
    as they are.

    Raises:
        ModelError: when a node's inputs do not fit each other; names the node.
    """
    types = {id(value): (value.type, value.shape) for value in _values(model)}
    try:
        _infer_rounds(model, _ROUNDS, propagate=True)
    except ModelError:
        # onnx's own propagation of values is wrong at times, e.g. of a Slice up to a computed end. What it
        # does not propagate takes rounds.
        for value in _values(model):
            value.type, value.shape = types[id(value)]
        _infer_rounds(model, _MANY_ROUNDS, propagate=False)


def _infer_rounds(model: ir.Model, rounds: int, *, propagate: bool) -> None:
    constants: dict[str, np.ndarray] = {}
    before = None
    for _ in range(rounds):
        _infer(model, constants, propagate)
        left = sum(_is_open(value) for value in _values(model))
        if left in (0, before):
            return
        before = left
        constants = constant_values(model)


def constant_values(model: ir.Model) -> dict[str, np.ndarray]:
    """The values of the main graph that follow from small constants and known shapes alone, by name.

    They are computed by onnxruntime, at the model's own opset.

    Raises:
        ModelError: when onnxruntime cannot compute them.
    """
    known: dict[str, np.ndarray] = {}
    computed: list[ir.Node] = []
    reachable = {""}  # the names of what is known or computed, and of an input left out
    for value in model.graph.initializers.values():
        _learn(known, value, value.const_value)
    for node in model.graph:
        if node.domain != "":
            continue
        shape = static_shape(node.inputs[0]) if node.op_type == "Shape" else None
        if shape is not None:
            window = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", None))
            known[_name(node.outputs[0])] = np.array(shape[window], dtype=np.int64)
        elif node.op_type == "Constant":
            _learn(known, node.outputs[0], ir.convenience.get_const_tensor(node.outputs[0]))
        elif _is_computable(node) and all(_name(x) in known or _name(x) in reachable for x in node.inputs):
            computed.append(node)
            reachable.update(_name(output) for output in node.outputs)
    if computed:
        results = _run(model, computed, known)
        known.update({name: array for name, array in results.items() if array.nbytes <= _SMALL})
    return known


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` when every dimension is known, else None."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return value.shape.numpy()


def without_big_weights(model: ir.Model) -> onnx.ModelProto:
    """`model` as a proto in which big weights are graph inputs, appended after the graph's own."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL or value.is_graph_output():
            continue
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        del light.graph.initializers[name]
        value.const_value = None
        light.graph.inputs.append(value)
    return ir.serde.serialize_model(light)


def condense(error: object, limit: int = 400) -> str:
    """A library's message on one line, without the dump of the graph that some append."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 4].rstrip() + " ..."


def _name(value: ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""


def _learn(known: dict[str, np.ndarray], value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
    if tensor is not None and tensor.nbytes <= _SMALL and tensor.dtype != ir.DataType.STRING:
        known[_name(value)] = tensor.numpy()


def _is_computable(node: ir.Node) -> bool:
    subgraphs = any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
    )
    return (
        node.domain == ""
        and node.op_type not in _RANDOM | _STORAGE
        and len(node.inputs) > 0
        and not subgraphs
    )


def _run(model: ir.Model, nodes: list[ir.Node], known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    read = dict.fromkeys(_name(x) for node in nodes for x in node.inputs)
    used = {name: known[name] for name in read if name in known}
    results = [output.name for node in nodes for output in node.outputs if output.name]
    graph = onnx.GraphProto(
        name="shape_arithmetic",
        node=[ir.serde.serialize_node(node) for node in nodes],
        initializer=[onnx.numpy_helper.from_array(array, name) for name, array in used.items()],
        output=[onnx.ValueInfoProto(name=name) for name in results],
    )
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4), graph=graph, opset_import=[opset])
    try:
        return Reference(ir.serde.deserialize_model(proto))({})
    except Exception as error:  # onnxruntime raises its own classes, straight from Exception
        where = describe_node(nodes[0]) if len(nodes) == 1 else None
        raise ModelError(f"the graph's arithmetic on shapes fails: {condense(error)}", node=where) from None


def _infer(model: ir.Model, constants: Mapping[str, np.ndarray], propagate: bool) -> None:
    """One round of onnx's inference, in which nodes that compute `constants` are those constants."""
    proto = without_big_weights(model)
    outputs = {output.name for output in proto.graph.output}
    kept, replaced = [], []
    for node in proto.graph.node:
        names = [name for name in node.output if name]
        if all(name in constants and name not in outputs for name in names):
            replaced.extend(names)
        else:
            kept.append(node)
    told = [info for info in proto.graph.value_info if info.name not in constants]
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(kept)
    proto.graph.value_info.extend(told)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(constants[name], name) for name in replaced)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=propagate
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ModelError(f"shapes do not fit: {condense(error)}") from None
    found = {value.name: value for value in _values(ir.serde.deserialize_model(inferred))}
    for value in _values(model):
        source = found.get(value.name)
        if source is not None and source.type is not None:
            value.type = source.type
        if source is not None and source.shape is not None and _is_open(value):
            value.shape = source.shape.copy()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every named value: inputs, weights and node outputs, of the graph and its subgraphs."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from (output for output in node.outputs if output.name)


def _is_open(value: ir.Value) -> bool:
    """Whether `value` is a tensor with an unknown dimension."""
    return not isinstance(value.type, (ir.SequenceType, ir.OptionalType)) and static_shape(value) is None
