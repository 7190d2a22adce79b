"""Read an ONNX file into a proto that holds everything itself: sizes, external data, validity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from lowerkit.errors import ModelError
from lowerkit.graph import qonnx
from lowerkit.graph.domain import NEWEST_OPSET
from lowerkit.graph.opset import OLDEST_OPSET
from lowerkit.graph.shapes import condense

#: Largest model, weights included, in bytes. A protobuf message, which onnx's checker and onnxruntime are
#: given and an artifact stores, holds at most this much.
MAX_BYTES = 2**31 - 1
#: Domains, beside the standard one, whose operators onnxruntime defines.
_RUNTIME_DOMAINS = frozenset(
    {
        "ai.onnx.ml",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
    }
)


def read_proto(path: Path) -> onnx.ModelProto:
    """The model in the ONNX file at `path`, valid by onnx's checker, external data read into it.

    External data is read from the model's folder alone, after the sizes were checked.

    Raises:
        ModelError: when the file is missing, too big, damaged, not ONNX, or not a valid model.
    """
    model = _parse(path)
    _normalise_domain(model)
    _check_header(model, path)
    _check_dense(model)
    _read_external_data(model, path)
    functions = {(function.domain, function.name) for function in model.functions}
    _check_operators(model.graph, {i.domain: i.version for i in model.opset_import}, functions)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{path} is not a valid ONNX model: {condense(error)}") from None
    for tensor in _tensors(model):
        _check_size(tensor)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path} is a directory", hint="name the .onnx file in it")
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size} bytes; {MAX_BYTES} (2 GiB) is the most")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    if not data:
        raise ModelError(f"{path} is empty")
    try:
        return onnx.ModelProto.FromString(data)
    except DecodeError:
        reason = f"{path} is not an ONNX file, or is cut off or damaged"
        raise ModelError(reason, hint="check its size or download it again") from None


def _normalise_domain(model: onnx.ModelProto) -> None:
    """Write the standard domain as "" everywhere, "ai.onnx" being its other name; and QONNX's by one name."""
    imports = [
        *model.opset_import,
        *(entry for function in model.functions for entry in function.opset_import),
    ]
    nodes = [*_nodes(model.graph.node), *(n for function in model.functions for n in _nodes(function.node))]
    for item in (*imports, *nodes):
        if item.domain == "ai.onnx":
            item.domain = ""
        if item.domain in qonnx.ALIASES:
            item.domain = qonnx.DOMAIN


def _check_header(model: onnx.ModelProto, path: Path) -> None:
    """The parts without which a file is no model; a file cut between two fields lacks the later ones."""
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        missing = "graph" if not model.HasField("graph") else "IR version and opset"
        reason = f"{path} is not an ONNX model, or is cut off: it has no {missing}"
        raise ModelError(reason, hint="check its size or download it again")
    opsets = [entry.version for entry in model.opset_import if entry.domain == ""]
    if len(opsets) > 1:
        raise ModelError(f"the model imports the standard opset {len(opsets)} times")
    if opsets and not OLDEST_OPSET <= opsets[0] <= NEWEST_OPSET:
        raise ModelError(
            f"the model has opset {opsets[0]}; {OLDEST_OPSET} to {NEWEST_OPSET} are understood",
            hint="export it with opset 23, or convert it with onnx.version_converter",
        )
    if not opsets:
        raise ModelError("the model imports no standard opset", hint="export it with opset 23")
    if not model.graph.output:
        raise ModelError("the graph has no outputs; the file may be cut off")


def _check_operators(graph: onnx.GraphProto, opsets: dict[str, int], functions: set[tuple[str, str]]) -> None:
    """Every node's operator exists in the opset that the model imports."""
    for index, node in enumerate(_nodes(graph.node)):
        where = f"node '{node.name or f'{node.op_type}_{index}'}' ({node.op_type})"
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in opsets:
            raise ModelError(f"its domain '{node.domain}' is not imported by the model", node=where)
        version = opsets[node.domain]
        if node.domain == "":
            try:
                schema = onnx.defs.get_schema(node.op_type, version, "")
            except onnx.defs.SchemaError:
                raise ModelError(f"opset {version} has no operator {node.op_type}", node=where) from None
            if schema.deprecated:
                raise ModelError(f"operator {node.op_type} is deprecated in opset {version}", node=where)
        elif node.domain == qonnx.DOMAIN:
            qonnx.check_node(node, where)
        elif node.domain not in _RUNTIME_DOMAINS:
            raise ModelError(
                f"operator domain '{node.domain}' is unknown to onnxruntime",
                node=where,
                hint="export the operator as a model-local function or in standard operators",
            )


def _check_dense(model: onnx.ModelProto) -> None:
    """No tensor is stored sparse: targets, and the checks below, know dense ones alone."""
    hint = "store it as a dense tensor"
    for sparse in model.graph.sparse_initializer:
        raise ModelError(f"weight '{sparse.values.name}' is stored sparse", hint=hint)
    for holder in (model.graph, *model.functions):
        for node in _nodes(holder.node):
            for attribute in node.attribute:
                graphs = (attribute.g, *attribute.graphs)
                sparse_inside = any(graph.sparse_initializer for graph in graphs)
                if sparse_inside or attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                    where = f"node '{node.name or node.output[0]}' ({node.op_type})"
                    raise ModelError("it holds a sparse tensor", node=where, hint=hint)


def _read_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Move data kept beside the model file into the proto. Paths and sizes are checked before reading."""
    folder = path.parent.resolve()
    parts = []
    total = path.stat().st_size
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        source = _inside(folder, entries.get("location", ""), tensor.name)
        size = source.stat().st_size
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", size - offset))
        except ValueError:
            raise ModelError(f"weight '{tensor.name}': its external offset or length is no number") from None
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(
                f"weight '{tensor.name}' lies at bytes {offset} to {offset + length} of {source.name}, "
                f"which has only {size}",
                hint="the external data file is cut off or belongs to another model",
            )
        total += length
        parts.append((tensor, source, offset, length))
    if total > MAX_BYTES:
        raise ModelError(
            f"the model and its external data have {total} bytes; {MAX_BYTES} (2 GiB) is the most"
        )
    for tensor, source, offset, length in parts:
        try:
            with source.open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(length)
        except OSError as error:
            raise ModelError(f"cannot read {source}: {error.strerror or error}") from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_size(tensor: onnx.TensorProto) -> None:
    """The tensor holds as many numbers as its shape says; the checker sees only when there are too few."""
    try:
        onnx.numpy_helper.to_array(tensor)
    except (TypeError, ValueError) as error:
        reason = f"weight '{tensor.name}' does not hold what its shape {list(tensor.dims)} says"
        raise ModelError(f"{reason}: {condense(error)}") from None


def _inside(folder: Path, location: str, name: str) -> Path:
    """The external data file at `location`, which must lie in the model's folder."""
    place = Path(location)
    where = f"weight '{name}': its external data '{location}'"
    hint = "keep external data beside the model file"
    if not location or "\0" in location:
        raise ModelError(f"weight '{name}' has external data without a usable location")
    # A backslash separates folders on Windows only; refused everywhere so that a model means one thing.
    if place.is_absolute() or ".." in place.parts or "\\" in location:
        raise ModelError(f"{where} is not a plain path below the model's folder", hint=hint)
    source = (folder / place).resolve()
    if not source.is_relative_to(folder):
        raise ModelError(f"{where} is a link to a place outside the model's folder", hint=hint)
    if not source.is_file():
        raise ModelError(f"{where} is missing from {folder}", hint="put the file beside the model")
    return source


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    """`nodes` and those of their subgraphs, each before its subgraphs'."""
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that may hold data: initializers and attributes, of the graph, subgraphs and functions."""
    yield from model.graph.initializer
    attributes = [a for function in model.functions for a in function.attribute_proto]
    for holder in (model.graph, *model.functions):
        attributes += [attribute for node in _nodes(holder.node) for attribute in node.attribute]
    for attribute in attributes:
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.initializer
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t
