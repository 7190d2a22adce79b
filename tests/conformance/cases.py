"""The ONNX project's node tests as cases that a static compiler can be asked to run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

#: Operator -> positions of the inputs that parameterise it. A node test feeds every input at run time, even
#: a shape or an axis; models hold these as constants, and so do the cases here.
PARAMETERS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Clip": (1, 2),
    "Col2Im": (1, 2),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "DequantizeLinear": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "MaxUnpool": (2,),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}


@dataclass(frozen=True)
class Case:
    """One node test: a model, and data sets of inputs and expected outputs in the graph's order."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[object], list[object]]]
    rtol: float
    atol: float

    @property
    def expanded(self) -> bool:
        """Whether the model is an operator's function body rather than the operator itself."""
        return "_expanded" in self.name

    @property
    def operator(self) -> str:
        """The operator that the case is about."""
        return self.model.graph.node[0].op_type

    def with_constants(self) -> Case:
        """The case with the inputs named in PARAMETERS held as constants, unless no other input is left."""
        names = [value.name for value in self.model.graph.input]
        inputs = self.data[0][0]
        fixed = {
            node.input[index]
            for node in self.model.graph.node
            if not node.domain
            for index in PARAMETERS.get(node.op_type, ())
            if index < len(node.input) and node.input[index] in names
        }
        kept = [index for index, name in enumerate(names) if name not in fixed]
        if len(self.data) != 1 or not fixed or not kept:
            return self
        if not all(isinstance(inputs[names.index(name)], np.ndarray) for name in fixed):
            return self
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        for name in sorted(fixed):
            array = inputs[names.index(name)]
            assert isinstance(array, np.ndarray)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        remaining = [model.graph.input[index] for index in kept]
        values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in remaining]
        del model.graph.input[:]
        model.graph.input.extend(values)
        data = [([inputs[index] for index in kept], self.data[0][1])]
        return Case(self.name, model, data, self.rtol, self.atol)


def _array(value: object) -> object:
    """Data comes as arrays, numpy scalars and protos; sequences and optionals stay as they are."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def all_cases() -> dict[str, Case]:
    """Every node test that the installed onnx generates, by name, in its order. Takes some ten seconds."""
    return {
        case.name: Case(
            case.name,
            case.model,
            [
                ([_array(x) for x in inputs], [_array(y) for y in outputs])
                for inputs, outputs in case.data_sets
            ],
            case.rtol,
            case.atol,
        )
        for case in load_model_tests(kind="node")
    }
