"""Opset conversion keeps results: each case runs in onnxruntime before and after."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowerkit.errors import ModelError
from lowerkit.graph.domain import OPSET
from lowerkit.graph.names import name_nodes
from lowerkit.graph.opset import upgrade
from lowerkit.graph.shapes import infer_shapes, static_shape
from lowerkit.reference import Reference

#: id -> (opset, graph)
CASES = {
    "batchnorm7": (
        7,
        "(float[2,3,4] x) => (float[2,3,4] y) <float[3] s={1,2,3}, float[3] b={0,1,2}, float[3] "
        "m={0.1,0.2,0.3}, float[3] v={1,2,3}> {y = BatchNormalization(x,s,b,m,v)}",
    ),
    "batchnorm9": (
        9,
        "(float[2,3,4] x) => (float[2,3,4] y) <float[3] s={1,2,3}, float[3] b={0,1,2}, float[3] "
        "m={0.1,0.2,0.3}, float[3] v={1,2,3}> {y = BatchNormalization<epsilon=0.1>(x,s,b,m,v)}",
    ),
    "batchnorm14": (
        14,
        "(float[2,3,4] x) => (float[2,3,4] y) <float[3] s={1,2,3}, float[3] b={0,1,2}, float[3] "
        "m={0.1,0.2,0.3}, float[3] v={1,2,3}> {y = BatchNormalization(x,s,b,m,v)}",
    ),
    "upsample7": (
        7,
        '(float[1,2,3,4] x) => (float[1,2,6,8] y) {y = Upsample<mode="nearest", '
        "scales=[1.0,1.0,2.0,2.0]>(x)}",
    ),
    "upsample7lin": (
        7,
        '(float[1,2,3,4] x) => (float[1,2,6,8] y) {y = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(x)}',
    ),
    "upsample9": (
        9,
        "(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] sc={1,1,2,2}> {y = "
        'Upsample<mode="nearest">(x,sc)}',
    ),
    "upsample9lin": (
        9,
        "(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] sc={1,1,2,2}> {y = "
        'Upsample<mode="linear">(x,sc)}',
    ),
    "upsample9const": (
        9,
        "(float[1,2,3,4] x) => (float[1,2,6,8] y) {sc = Constant<value=float[4] {1,1,2,2}>() y = "
        'Upsample<mode="linear">(x,sc)}',
    ),
    "resize10": (
        10,
        '(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] sc={1,1,2,2}> {y = Resize<mode="nearest">(x,sc)}',
    ),
    "resize10lin": (
        10,
        '(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] sc={1,1,2,2}> {y = Resize<mode="linear">(x,sc)}',
    ),
    "resize10down": (
        10,
        "(float[1,2,6,8] x) => (float[1,2,3,5] y) <float[4] sc={1,1,0.6,0.7}> {y = "
        'Resize<mode="nearest">(x,sc)}',
    ),
    "resize11": (
        11,
        "(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] sc={1,1,2,2}> {roi = "
        "Constant<value=float[0] {}>() y = "
        'Resize<mode="linear",coordinate_transformation_mode="align_corners">(x,roi,sc)}',
    ),
    "resize11cubic": (
        11,
        "(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] sc={1,1,2,2}> {roi = "
        "Constant<value=float[0] {}>() y = "
        'Resize<mode="cubic",coordinate_transformation_mode="half_pixel">(x,roi,sc)}',
    ),
    "resize13sizes": (
        13,
        "(float[1,2,3,4] x) => (float[1,2,5,7] y) <int64[4] sz={1,2,5,7}> {y = "
        'Resize<mode="nearest">(x,,,sz)}',
    ),
    "slice1": (7, "(float[4,5] x) => (float[2,3] y) {y = Slice<axes=[0,1],starts=[1,0],ends=[3,-2]>(x)}"),
    "slice9": (9, "(float[4,5] x) => (float[3,5] y) {y = Slice<starts=[1],ends=[100]>(x)}"),
    "slice10": (
        10,
        "(float[4,5] x) => (float[2,5] y) <int64[1] s={0}, int64[1] e={4}, int64[1] a={0}, "
        "int64[1] t={2}> {y = Slice(x,s,e,a,t)}",
    ),
    "pad2": (7, "(float[2,3] x) => (float[4,6] y) {y = Pad<pads=[1,2,1,1],value=0.5>(x)}"),
    "pad2reflect": (9, '(float[3,4] x) => (float[5,6] y) {y = Pad<pads=[1,1,1,1],mode="reflect">(x)}'),
    "pad11": (11, "(float[2,3] x) => (float[4,6] y) <int64[4] p={1,2,1,1}, float v={2}> {y = Pad(x,p,v)}"),
    "dropout7": (7, "(float[2,3] x) => (float[2,3] z) {y = Dropout<ratio=0.3>(x) z = Relu(y)}"),
    "dropout10": (10, "(float[2,3] x) => (float[2,3] z) {y, mask = Dropout<ratio=0.3>(x) z = Relu(y)}"),
    "dropout12": (12, "(float[2,3] x) => (float[2,3] z) <float r={0.3}> {y = Dropout(x,r) z = Relu(y)}"),
    "softmax11_default": (11, "(float[2,3,4] x) => (float[2,3,4] y) {y = Softmax(x)}"),
    "softmax7_axis0": (7, "(float[2,3,4] x) => (float[2,3,4] y) {y = Softmax<axis=0>(x)}"),
    "softmax11_axis1": (11, "(float[2,3,4,5] x) => (float[2,3,4,5] y) {y = Softmax<axis=1>(x)}"),
    "softmax11_axis2": (11, "(float[2,3,4] x) => (float[2,3,4] y) {y = Softmax<axis=2>(x)}"),
    "softmax11_neg1": (11, "(float[2,3,4] x) => (float[2,3,4] y) {y = Softmax<axis=-1>(x)}"),
    "softmax11_neg2": (11, "(float[2,3,4] x) => (float[2,3,4] y) {y = Softmax<axis=-2>(x)}"),
    "softmax11_ones": (11, "(float[2,3,1,1] x) => (float[2,3,1,1] y) {y = Softmax<axis=1>(x)}"),
    "logsoftmax9": (9, "(float[2,3,4] x) => (float[2,3,4] y) {y = LogSoftmax(x)}"),
    "logsoftmax12_2": (12, "(float[2,3,4] x) => (float[2,3,4] y) {y = LogSoftmax<axis=2>(x)}"),
    "hardmax11": (11, "(float[2,3,4] x) => (float[2,3,4] y) {y = Hardmax(x)}"),
    "clip6": (7, "(float[2,3] x) => (float[2,3] y) {y = Clip<min=-0.5,max=0.5>(x)}"),
    "clip6_one": (9, "(float[2,3] x) => (float[2,3] y) {y = Clip<min=-0.5>(x)}"),
    "clip6_none": (9, "(float[2,3] x) => (float[2,3] y) {y = Clip(x)}"),
    "clip6_max": (9, "(float[2,3] x) => (float[2,3] y) {y = Clip<max=0.1>(x)}"),
    "clip11": (11, "(float[2,3] x) => (float[2,3] y) <float lo={-0.5}> {y = Clip(x,lo)}"),
    "reducesum11": (11, "(float[2,3,4] x) => (float[2,4] y) {y = ReduceSum<axes=[1],keepdims=0>(x)}"),
    "reducesum7all": (7, "(float[2,3,4] x) => (float[1,1,1] y) {y = ReduceSum(x)}"),
    "reducesum11neg": (11, "(float[2,3,4] x) => (float[2,3,1] y) {y = ReduceSum<axes=[-1]>(x)}"),
    "reducemean13": (13, "(float[2,3,4] x) => (float[2,3,1] y) {y = ReduceMean<axes=[-1]>(x)}"),
    "reducemax7": (7, "(float[2,3,4] x) => (float[2,1,4] y) {y = ReduceMax<axes=[1]>(x)}"),
    "reducel2": (11, "(float[2,3,4] x) => (float[2,1,4] y) {y = ReduceL2<axes=[1]>(x)}"),
    "reducelse": (11, "(float[2,3,4] x) => (float[2,1,4] y) {y = ReduceLogSumExp<axes=[1]>(x)}"),
    "squeeze11": (11, "(float[2,1,4] x) => (float[2,4] y) {y = Squeeze<axes=[1]>(x)}"),
    "squeeze7none": (7, "(float[2,1,4] x) => (float[2,4] y) {y = Squeeze(x)}"),
    "unsqueeze11": (11, "(float[2,4] x) => (float[2,1,4,1] y) {y = Unsqueeze<axes=[1,-1]>(x)}"),
    "gemm7": (
        7,
        "(float[2,3] x) => (float[2,4] y) <float[4,3] w={1,2,3,4,5,6,7,8,9,10,11,12}, float[4] "
        "b={1,2,3,4}> {y = Gemm<transB=1,alpha=0.5>(x,w,b)}",
    ),
    "gemm9": (
        9,
        "(float[2,3] x) => (float[2,4] y) <float[3,4] w={1,2,3,4,5,6,7,8,9,10,11,12}, float[4] "
        "b={1,2,3,4}> {y = Gemm(x,w,b)}",
    ),
    "topk1": (7, "(float[2,5] x) => (float[2,3] v, int64[2,3] i) {v, i = TopK<k=3>(x)}"),
    "topk10": (
        10,
        "(float[2,5] x) => (float[2,3] v, int64[2,3] i) <int64[1] k={3}> {v, i = TopK<axis=-1>(x,k)}",
    ),
    "split2": (7, "(float[2,6] x) => (float[2,2] a, float[2,4] b) {a, b = Split<axis=1,split=[2,4]>(x)}"),
    "split2even": (7, "(float[2,6] x) => (float[2,3] a, float[2,3] b) {a, b = Split<axis=1>(x)}"),
    "split11even": (11, "(float[6,2] x) => (float[2,2] a, float[2,2] b, float[2,2] c) {a, b, c = Split(x)}"),
    "split13even": (13, "(float[2,6] x) => (float[2,3] a, float[2,3] b) {a, b = Split<axis=1>(x)}"),
    "split17": (
        17,
        "(float[2,6] x) => (float[2,2] a, float[2,4] b) <int64[2] s={2,4}> {a, b = Split<axis=1>(x,s)}",
    ),
    "maxpool8": (
        8,
        "(float[1,2,5,5] x) => (float[1,2,2,2] y) {y = MaxPool<kernel_shape=[3,3],strides=[2,2]>(x)}",
    ),
    "avgpool7": (
        7,
        "(float[1,2,5,5] x) => (float[1,2,3,3] y) {y = "
        "AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)}",
    ),
    "avgpool10ceil": (
        10,
        "(float[1,2,6,6] x) => (float[1,2,3,3] y) {y = "
        "AveragePool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>(x)}",
    ),
    "avgpool11ceilinc": (
        11,
        "(float[1,2,6,6] x) => (float[1,2,4,4] y) {y = "
        "AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1],ceil_mode=1,count_include_pad=1>(x)}",
    ),
    "flatten7": (7, "(float[2,3,4] x) => (float[2,12] y) {y = Flatten(x)}"),
    "prelu7": (7, "(float[2,3] x) => (float[2,3] y) <float[3] s={0.1,0.2,0.3}> {y = PRelu(x,s)}"),
    "sum7": (7, "(float[2,3] x, float[3] z) => (float[2,3] y) {y = Sum(x,x)}"),
    "max7": (7, "(float[2,3] x) => (float[2,3] y) {a = Neg(x) y = Max(x,a)}"),
    "cast7": (7, "(float[2,3] x) => (int64[2,3] y) {y = Cast<to=7>(x)}"),
    "elu7": (7, "(float[2,3] x) => (float[2,3] y) {y = Elu<alpha=0.5>(x)}"),
    "instnorm7": (
        7,
        "(float[2,3,4] x) => (float[2,3,4] y) <float[3] s={1,2,3}, float[3] b={0,1,2}> {y = "
        "InstanceNormalization(x,s,b)}",
    ),
    "lrn7": (7, "(float[1,5,2,2] x) => (float[1,5,2,2] y) {y = LRN<size=3>(x)}"),
    "scatter9": (
        9,
        "(float[3,3] x) => (float[3,3] y) <int64[1,3] i={0,2,1}, float[1,3] u={1,2,3}> {y = "
        "Scatter<axis=0>(x,i,u)}",
    ),
    "gather1": (7, "(float[3,3] x) => (float[2,3] y) <int64[2] i={0,2}> {y = Gather(x,i)}"),
    "equal7": (7, "(int64[2,3] x) => (bool[2,3] y) <int64[3] i={0,2,1}> {y = Equal(x,i)}"),
    "onehot9": (9, "(int64[3] x) => (float[3,5] y) <int64 d={5}, float[2] v={0,1}> {y = OneHot(x,d,v)}"),
    "const_shape9": (
        9,
        "(float[2,3] x) => (float[2,3] y) {s = Shape(x) c = ConstantOfShape<value=float[1] "
        "{2.0}>(s) y = Add(x,c)}",
    ),
    "gridsample16": (
        16,
        '(float[1,1,4,4] x, float[1,3,3,2] g) => (float[1,1,3,3] y) {y = GridSample<mode="bilinear">(x,g)}',
    ),
    "gridsample16def": (
        16,
        "(float[1,1,4,4] x, float[1,3,3,2] g) => (float[1,1,3,3] y) {y = GridSample(x,g)}",
    ),
    "gridsample16cub": (
        16,
        '(float[1,1,4,4] x, float[1,3,3,2] g) => (float[1,1,3,3] y) {y = GridSample<mode="bicubic">(x,g)}',
    ),
    "layernorm17": (
        17,
        "(float[2,3,4] x) => (float[2,3,4] y) <float[4] s={1,2,3,4}> {y = LayerNormalization(x,s)}",
    ),
    "hardswish14": (14, "(float[2,3] x) => (float[2,3] y) {y = HardSwish(x)}"),
    "argmax7": (7, "(float[2,3] x) => (int64[2] y) {y = ArgMax<axis=1,keepdims=0>(x)}"),
    "tile7": (7, "(float[2,3] x) => (float[4,3] y) <int64[2] r={2,1}> {y = Tile(x,r)}"),
    "dft17": (17, "(float[1,4,2] x) => (float[1,4,2] y) {y = DFT<axis=1>(x)}"),
    "lstm7": (
        7,
        "(float[2,1,1] x) => (float[2,1,1,1] y) <float[1,4,1] w={0.1,0.2,0.3,0.4}, float[1,4,1] "
        "r={0.1,0.2,0.3,0.4}> {y = LSTM<hidden_size=1>(x,w,r)}",
    ),
    "gru7": (
        7,
        "(float[2,1,1] x) => (float[2,1,1,1] y) <float[1,3,1] w={0.1,0.2,0.3}, float[1,3,1] "
        "r={0.1,0.2,0.3}> {y = GRU<hidden_size=1>(x,w,r)}",
    ),
    "qlin10": (
        10,
        "(float[2,3] x) => (float[2,3] y) <float s={0.1}, int8 z={3}> {q = QuantizeLinear(x,s,z) "
        "y = DequantizeLinear(q,s,z)}",
    ),
    "groupnorm18": (
        18,
        "(float[1,4,2] x) => (float[1,4,2] y) <float[2] s={1,2}, float[2] b={3,4}> {y = "
        "GroupNormalization<num_groups=2>(x,s,b)}",
    ),
    "if_sub": (
        11,
        "(float[2,3,4] x, bool c) => (float[2,3,4] y) {y = If(c) <then_branch = g1 () => "
        "(float[2,3,4] a) {a = Softmax(x)}, else_branch = g2 () => (float[2,3,4] b) {b = "
        "Relu(x)}>}",
    ),
    "if_sub_sq": (
        11,
        "(float[2,1,4] x, bool c) => (float[2,4] y) {y = If(c) <then_branch = g1 () => "
        "(float[2,4] a) {a = Squeeze<axes=[1]>(x)}, else_branch = g2 () => (float[2,4] b) {b = "
        "ReduceSum<axes=[1],keepdims=0>(x)}>}",
    ),
    "loop11": (
        11,
        "(float[2,3,4] x) => (float[2,3,4] y) <int64 n={3}, bool c={1}> {y = Loop(n,c,x) <body = "
        "g1 (int64 i, bool ci, float[2,3,4] h) => (bool co, float[2,3,4] ho) {co = Identity(ci) "
        "ho = Softmax(h)}>}",
    ),
    "contrib": (12, "(float[2,3,4] x) => (float[2,3,4] y) {g = com.microsoft.Gelu(x) y = Softmax(g)}"),
    "upsample_dyn": (
        9,
        "(float[1,2,3,4] x) => (float[1,2,6,8] y) <float[4] h={0.5,0.5,1,1}> {sc = Add(h,h) y = "
        'Upsample<mode="nearest">(x,sc)}',
    ),
    "rnnseq7": (7, "(float[2,3] x) => (float[2,3] y) {y = Selu(x)}"),
    "thresh10": (10, "(float[2,3] x) => (float[2,3] y) {y = ThresholdedRelu<alpha=0.2>(x)}"),
    "mod10": (10, "(float[2,3] x) => (float[2,3] y) <float[3] d={1,2,3}> {y = Mod<fmod=1>(x,d)}"),
    "cumsum11": (11, "(float[2,3] x) => (float[2,3] y) <int64 a={1}> {y = CumSum(x,a)}"),
    "celu12": (12, "(float[2,3] x) => (float[2,3] y) {y = Celu(x)}"),
    "depthspace11": (
        11,
        '(float[1,4,2,2] x) => (float[1,1,4,4] y) {y = DepthToSpace<blocksize=2,mode="CRD">(x)}',
    ),
    "scan9": (
        9,
        "(float[3,2] x) => (float[3,2] y) <float[2] h0={0,0}> {hf, y = Scan<num_scan_inputs=1, "
        "body = g1 (float[2] h, float[2] s) => (float[2] ho, float[2] so) {ho = Add(h,s) so = "
        "Identity(ho)}>(h0,x)}",
    ),
    "scatternd11": (
        11,
        "(float[3,2] x) => (float[3,2] y) <int64[1,1] i={1}, float[1,2] u={5,6}> {y = ScatterND(x,i,u)}",
    ),
    "isinf10": (10, "(float[3,2] x) => (bool[3,2] y) {y = IsInf(x)}"),
}
#: Kernels of a later opset that add in another order.
ROUNDING = {"avgpool7", "avgpool10ceil"}


def parse(opset: int, graph: str) -> ir.Model:
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]> g '
    model = ir.serde.deserialize_model(onnx.parser.parse_model(header + graph))
    name_nodes(model)
    infer_shapes(model)
    return model


def inputs_of(model: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        shape, dtype = static_shape(value), value.dtype.numpy()
        numbers = rng.integers(0, 3, shape) if dtype.kind == "i" else rng.standard_normal(shape)
        feeds[value.name] = np.asarray(numbers).astype(dtype)
    return feeds


@pytest.mark.parametrize("case", CASES)
def test_results_and_names_survive(case: str) -> None:
    model = parse(*CASES[case])
    feeds = inputs_of(model)
    expected = Reference(model)(feeds)
    nodes = {node.name for node in model.graph.all_nodes()}

    upgrade(model)

    assert model.opset_imports[""] == OPSET
    onnx.checker.check_model(ir.serde.serialize_model(model))
    assert nodes <= {node.name for node in model.graph.all_nodes()}
    found = Reference(model)(feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        if case in ROUNDING:
            np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name], array)


def test_softmax_of_the_last_axis_stays_one_node() -> None:
    model = parse(11, "(float[2,3,4] x) => (float[2,3,4] y) {y = Softmax<axis=2>(x)}")
    upgrade(model)
    assert [node.op_type for node in model.graph] == ["Softmax"]


@pytest.mark.parametrize("opset", [24, 25, 26])
def test_newer_opsets_stay(opset: int) -> None:
    model = parse(opset, "(float[2] x) => (float[2] y) {y = Relu(x)}")
    upgrade(model)
    assert model.opset_imports[""] == opset


def test_local_functions_are_inlined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
    g (float[2,3] x) => (float[2,3] y) { a = mine.twice(x) y = mine.twice(a) }
    <domain: "mine", opset_import: ["" : 17]> twice (v) => (w) { w = Add(v, v) }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    upgrade(model)
    assert [node.op_type for node in model.graph] == ["Add", "Add"]
    assert len({node.name for node in model.graph}) == 2
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(Reference(model)({"x": x})["y"], 4 * x)


@pytest.mark.parametrize(
    ("opset", "graph", "words"),
    [
        (
            10,
            "(float[1,1,4,4] x) => (float[1,1,8,2] y) <float[4] s = {1,1,2,0.5}>"
            ' {[r] y = Resize<mode="nearest">(x,s)}',
            ("'r' (Resize)", "enlarges one axis and shrinks another"),
        ),
        (
            10,
            '(float[1,1,4,4] x, float[4] s) => (float[1,1,a,b] y) {[r] y = Resize<mode="nearest">(x,s)}',
            ("'r' (Resize)", "depend on data"),
        ),
        (
            16,
            "(float[1,1,4,4] x) => (float[1,1,2,2] y) <float[1,4] r = {0,0,3,3}, int64[1] b = {0}>"
            " {[n] y = RoiAlign<output_height=2,output_width=2>(x,r,b)}",
            ("RoiAlign", "'n'"),
        ),
    ],
)
def test_refusals_name_the_node(opset: int, graph: str, words: tuple[str, ...]) -> None:
    model = parse(opset, graph)
    with pytest.raises(ModelError) as refusal:
        upgrade(model)
    for word in words:
        assert word in str(refusal.value)


def test_shape_arithmetic_is_resolved() -> None:
    model = parse(
        13,
        "(float[2,3,4] x) => (float[a,b] y) <int64 i = {0}, int64[1] axes = {0}, int64[1] rest = {-1},"
        " float h = {0.5}> {s = Shape(x) d = Gather(s,i) f = Cast<to=1>(d) g = Div(f,h) k = Floor(g)"
        " n = Cast<to=7>(k) u = Unsqueeze(n,axes) t = Concat<axis=0>(u,rest) y = Reshape(x,t)}",
    )
    assert static_shape(model.graph.outputs[0]) == (4, 6)


def test_shapes_that_do_not_fit_name_the_node() -> None:
    with pytest.raises(ModelError, match="node name: bad"):
        parse(13, "(float[2,3] x) => (float[2,4] y) <float[4,4] w> {[bad] y = MatMul(x,x)}")
