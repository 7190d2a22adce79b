"""The innermost step of a matrix product, by type of number and by processor: a vector of sums takes up `step`
products each.

A step reads `step` elements of a row of the left operand, the same for all lanes, and for every lane `step` elements
of a column of the right one, which the panels hold side by side. What differs between float32, bfloat16 and int8, and
between processors, is here; the loops around it (template.py) are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tvm import tirx
from tvm.ir import Expr

from lowerkit.targets.cpu.kernels.gemm.expressions import ramp, splat

#: Reads the element of the left operand's row at a position along the reduction.
Row = Callable[[Expr], Expr]
#: Reads so many elements of the right operand, those of one vector of columns in one step.
Load = Callable[[int], Expr]


@dataclass(frozen=True)
class Dot:
    """float32, which is also the base of the others.

    Attributes:
        step: products that a lane sums up in one step.
        stored: elements of the panels that a lane reads for one step.
        panel: dtype of the panels.
        sum: dtype of the sums.
        padded: whether the left operand's rows end with zeros, so that they have whole steps.
        llvm: LLVM functions that `accumulate` calls.
    """

    step: int = 1
    stored: int = 1
    panel: str = "float32"
    sum: str = "float32"
    padded: bool = False
    llvm: str = ""

    @property
    def operand(self) -> str:
        """dtype of the left operand."""
        return "int16" if self.sum == "int32" else "float32"

    def left(self, row: Row, k: Expr, lanes: int) -> Expr:
        """The row's element `k` in all lanes."""
        return splat(row(k), lanes)

    def right(self, load: Load, lanes: int) -> list[Expr]:
        """The vectors that a step multiplies, one after the other, with what `left` gives."""
        return [load(lanes)]

    def accumulate(self, total: Expr, left: Expr, right: Expr) -> Expr:
        """`total` with the products of two vectors added."""
        return total + left * right

    def store(self, weight: np.ndarray) -> np.ndarray:
        """Weights [steps, step, N] -> what the panels hold of them, [steps, N, stored]."""
        return weight.transpose(0, 2, 1)

    def element(self, panels: Callable[[Expr], Expr], at: Expr, k: Expr) -> Expr:
        """Weight `k` of the step that a lane stores from `at` on, in the type of the sums."""
        return panels(at + k).astype(self.sum)


@dataclass(frozen=True)
class Widened(Dot):
    """float32 by int8 weights, which become float32 in registers."""

    panel: str = "int8"

    def right(self, load: Load, lanes: int) -> list[Expr]:
        return [load(lanes).astype(f"float32x{lanes}")]


@dataclass(frozen=True)
class Nibbles(Dot):
    """float32 by int4 weights, eight of a column to an int32, the first one lowest."""

    step: int = 8
    panel: str = "int32"

    def right(self, load: Load, lanes: int) -> list[Expr]:
        eight = load(lanes)
        up = [splat(tirx.const(n, "int32"), lanes) for n in range(28, -1, -4)]
        return [((eight << shift) >> up[0]).astype(f"float32x{lanes}") for shift in up]

    def store(self, weight: np.ndarray) -> np.ndarray:
        nibbles = (weight.astype(np.uint32) & 15) << (4 * np.arange(8, dtype=np.uint32))[:, None]
        words: np.ndarray = np.bitwise_or.reduce(nibbles, axis=1).view(np.int32)
        return words[..., None]

    def element(self, panels: Callable[[Expr], Expr], at: Expr, k: Expr) -> Expr:
        nibble = (panels(at) >> (4 * k).astype("int32")) & 15
        return ((nibble ^ 8) - 8).astype("float32")


@dataclass(frozen=True)
class Bfloat16(Dot):
    """float32, rounded to bfloat16 before, by bfloat16 weights (as uint16 bits): the upper half of a float32."""

    step: int = 2
    stored: int = 2
    panel: str = "uint16"

    def right(self, load: Load, lanes: int) -> list[Expr]:
        pair = tirx.reinterpret(f"uint32x{lanes}", load(2 * lanes))
        sixteen, high = (splat(tirx.const(n, "uint32"), lanes) for n in (16, 0xFFFF0000))
        return [tirx.reinterpret(f"float32x{lanes}", x) for x in (pair << sixteen, pair & high)]

    def element(self, panels: Callable[[Expr], Expr], at: Expr, k: Expr) -> Expr:
        return widened(panels(at + k))


def widened(bits: Expr) -> Expr:
    """The float32 that the uint16 `bits` of a bfloat16 stand for."""
    return tirx.reinterpret("float32", bits.astype("uint32") << tirx.const(16, "uint32"))


def factor(stored: Expr, dtype: str, total: str) -> Expr:
    """The number `stored` as `dtype`, of which uint16 is the bits of a bfloat16, in the type `total` of the sums."""
    return widened(stored) if dtype == "uint16" else stored.astype(total)


@dataclass(frozen=True)
class Instruction(Dot):
    """`step` narrow products a lane by one function of LLVM: (sums, 32 bits of the row in all lanes, panel) -> sums.

    Vectors go in and out as lanes of 32 bits, whatever they hold.

    Attributes:
        row: dtype of the left operand.
        function: name of the function in `llvm`.
    """

    step: int = 2
    stored: int = 2
    panel: str = "int16"
    sum: str = "int32"
    padded: bool = True
    row: str = "int16"
    function: str = field(default="", kw_only=True)

    @property
    def operand(self) -> str:
        return self.row

    def left(self, row: Row, k: Expr, lanes: int) -> Expr:
        return splat(tirx.reinterpret("int32", row(ramp(k, self.step))), lanes)

    def right(self, load: Load, lanes: int) -> list[Expr]:
        return [tirx.reinterpret(f"int32x{lanes}", load(self.step * lanes))]

    def accumulate(self, total: Expr, left: Expr, right: Expr) -> Expr:
        return tirx.call_pure_extern(str(total.ty.dtype), self.function, total, left, right)

    def element(self, panels: Callable[[Expr], Expr], at: Expr, k: Expr) -> Expr:
        return factor(panels(at + k), self.panel, self.sum)


def pairs_by_madd(lanes: int) -> Instruction:
    """int16 by int16 with x86's `pmaddwd`: two products a lane, exact in int32."""
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    words, halves = f"<{lanes} x i32>", f"<{2 * lanes} x i16>"
    return Instruction(
        function="lowerkit_pmaddwd",
        llvm=f"""
declare {words} @llvm.x86.{name}({halves}, {halves})
define {words} @lowerkit_pmaddwd({words} %c, {words} %a, {words} %b) {{
  %x = bitcast {words} %a to {halves}
  %y = bitcast {words} %b to {halves}
  %p = call {words} @llvm.x86.{name}({halves} %x, {halves} %y)
  %s = add {words} %c, %p
  ret {words} %s
}}""",
    )


def _adding(function: str, intrinsic: str, sums: str, narrow: str) -> str:
    """`function` of an instruction of AVX-512 that adds products of vectors `narrow` to `sums`."""
    words = "<16 x i32>"
    return f"""
declare {sums} @llvm.x86.{intrinsic}({sums}, {narrow}, {narrow})
define {sums} @{function}({sums} %c, {words} %a, {words} %b) {{
  %x = bitcast {words} %a to {narrow}
  %y = bitcast {words} %b to {narrow}
  %s = call {sums} @llvm.x86.{intrinsic}({sums} %c, {narrow} %x, {narrow} %y)
  ret {sums} %s
}}"""


#: uint8 by int8 with AVX-512 VNNI's `vpdpbusd`: four products a lane, exact in int32.
QUADS = Instruction(
    step=4,
    stored=4,
    panel="int8",
    row="uint8",
    function="lowerkit_vpdpbusd",
    llvm=_adding("lowerkit_vpdpbusd", "avx512.vpdpbusd.512", "<16 x i32>", "<64 x i8>"),
)

#: bfloat16 by bfloat16 with AVX-512 BF16's `vdpbf16ps`: two products a lane, subnormal numbers taken for 0.
BF16_PAIRS = Instruction(
    panel="uint16",
    row="uint16",
    sum="float32",
    function="lowerkit_vdpbf16ps",
    llvm=_adding("lowerkit_vdpbf16ps", "avx512bf16.dpbf16ps.512", "<16 x float>", "<32 x bfloat>"),
)

#: int16 by int16 without an instruction for it.
PLAIN_INT8 = Dot(panel="int16", sum="int32")
