"""What the templates ask of a processor: its registers and the steps that it is good at."""

from __future__ import annotations

from dataclasses import dataclass

from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.kernels.gemm.dots import (
    BF16_PAIRS,
    PLAIN_INT8,
    QUADS,
    Bfloat16,
    Dot,
    Nibbles,
    Widened,
    pairs_by_madd,
)


@dataclass(frozen=True)
class Machine:
    """A kind of processor.

    Attributes:
        lanes: 32-bit lanes of a vector register.
        registers: vector registers.
        int8, bf16: how it multiplies these.
    """

    lanes: int
    registers: int
    int8: Dot
    bf16: Dot

    def dot(self, kind: str) -> Dot:
        """The step of a product of this kind: float32, bf16, int8, weight-int8 or weight-int4."""
        fixed = {"float32": Dot(), "weight-int8": Widened(), "weight-int4": Nibbles()}
        return {**fixed, "bf16": self.bf16, "int8": self.int8}[kind]


def machine(cpu: str) -> Machine:
    """The processor that the option `cpu` names."""
    lanes = features.level(cpu).lanes
    x86 = cpu.startswith("x86-64")
    return Machine(
        lanes,
        registers=16 if x86 and lanes < 16 else 32,
        int8=QUADS if features.has(cpu, "vnni") else pairs_by_madd(lanes) if x86 else PLAIN_INT8,
        bf16=BF16_PAIRS if features.has(cpu, "bf16") else Bfloat16(),
    )
