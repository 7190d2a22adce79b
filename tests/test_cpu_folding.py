"""Constants that TVM need not fold, and its import without what is not needed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tvm
from tvm import relax

from lowerkit.targets.cpu.fold_views import FoldViews


def folded(build: object, shape: tuple[int, ...]) -> relax.Function:
    """`main` of one input of `shape`, whose result `build` gives, after the pass."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(build(builder, x))  # type: ignore[operator]
        builder.emit_func_output(result)
    return FoldViews()(builder.get())["main"]  # type: ignore[operator]


def operators(function: relax.Function) -> list[str]:
    return [
        binding.value.op.name
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, tvm.ir.Call)
    ]


@pytest.mark.parametrize("axes", [None, (2, 0, 1)])
def test_a_chain_of_views_of_a_constant_is_a_constant(axes: tuple[int, ...] | None) -> None:
    array = np.random.default_rng(0).standard_normal((7, 1, 3)).astype(np.float32)

    def build(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        wide = builder.emit(relax.op.broadcast_to(relax.const(array), (7, 5, 3)))
        turned = builder.emit(relax.op.permute_dims(wide, axes))
        return relax.op.add(x, builder.emit(relax.op.reshape(turned, (35, 3))))

    function = folded(build, (35, 3))
    assert operators(function) == ["relax.add"]
    constant = function.body.blocks[0].bindings[-1].value.args[1]
    expected = np.broadcast_to(array, (7, 5, 3)).transpose(axes).reshape(35, 3)
    np.testing.assert_array_equal(constant.value.numpy(), expected)


def test_views_of_what_is_no_constant_stay() -> None:
    function = folded(lambda builder, x: relax.op.reshape(x, (3, 5)), (5, 3))
    assert operators(function) == ["relax.reshape"]


def test_a_constant_output_keeps_its_name() -> None:
    array = np.arange(6, dtype=np.float32)
    function = folded(lambda builder, x: relax.op.reshape(relax.const(array), (2, 3)), (1,))
    assert operators(function) == ["relax.reshape"]


def test_importing_tvm_imports_no_torch_and_hides_nothing_afterwards() -> None:
    code = """
import sys
from lowerkit.targets.cpu.import_tvm import import_tvm
import_tvm()
import tvm
assert tvm.target.Target({"kind": "llvm"}).kind.name == "llvm"
assert "torch" not in sys.modules, "torch is there"
assert None not in sys.modules.values(), "a module stays hidden"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
