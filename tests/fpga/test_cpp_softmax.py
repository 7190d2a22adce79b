"""Printed softmax kernels, compiled with the ap_types headers, against the interpreter."""

from __future__ import annotations

import csim
import numpy as np
import pytest

from lowerkit.passes.softmax.binary import Binary
from lowerkit.passes.softmax.fixed import Fixed as FixedMethod
from lowerkit.passes.softmax.log_quantised import LogQuantised
from lowerkit.passes.softmax.power import Power
from lowerkit.passes.softmax.quantised import Quantised
from lowerkit.targets.fpga.formats import Fixed as Format
from lowerkit.targets.fpga.kernels import softmax
from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.lang.program import Kernel

WIDE, BYTE = Format.parse("ap_fixed<16,6>"), Format.parse("ap_fixed<8,4>")
WHOLE, FINE = Format.parse("int8"), Format.parse("ap_ufixed<24,1>")
ROWS = 4
KERNELS = [
    softmax.fixed(ROWS, 64, WIDE, WIDE, name="fixed_wide"),
    softmax.fixed(ROWS, 1, WIDE, WIDE, name="fixed_alone"),
    softmax.fixed(ROWS, 17, BYTE, Format.parse("ap_ufixed<8,0>"), name="fixed_byte"),
    softmax.fixed(
        ROWS,
        17,
        WIDE,
        FINE,
        FixedMethod(input_bits=7, table_bits=4, reciprocal_bits=14, output_bits=23),
        name="fixed_fine",
    ),
    softmax.shift(ROWS, 64, WIDE, WIDE, name="shift_wide"),
    softmax.shift(ROWS, 17, BYTE, FINE, octaves=True, name="shift_octaves"),
    softmax.shift(ROWS, 17, WHOLE, WIDE, name="shift_whole"),
    softmax.log_quantised(ROWS, 64, WIDE, name="log_two"),
    softmax.log_quantised(ROWS, 17, WIDE, LogQuantised(bits=6, base="sqrt2"), name="log_root"),
    softmax.quantised(ROWS, 64, WIDE, name="quantised_codes"),
    softmax.quantised(ROWS, 17, BYTE, Quantised(correction=0.001), target=WIDE, name="quantised_numbers"),
    softmax.binary(ROWS, 64, WIDE, name="binary_bits"),
    softmax.binary(ROWS, 17, WIDE, Binary(threshold=0.3), target=WIDE, name="binary_numbers"),
    softmax.power(ROWS, 64, WIDE, WIDE, name="power_two"),
    softmax.power(ROWS, 17, BYTE, FINE, Power(power=6, form="plain"), name="power_six"),
    softmax.power(ROWS, 3, Format.parse("ap_fixed<20,16>"), WIDE, Power(scale=8192.0), name="power_masked"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> csim.Program:
    """All kernels in one program."""
    return csim.Program(KERNELS, tmp_path_factory.mktemp("softmax"))


def inputs(kernel: Kernel) -> np.ndarray:
    """Codes [batch, rows, columns], 1,200 rows: near and wide ones, ends, ties and peaks."""
    (x,) = kernel.inputs
    rng = np.random.default_rng(3)
    low, high = x.range.low, x.range.high
    shape = (60, *x.shape)
    peak = rng.integers(low // 16, high // 16 + 1, shape)
    peak[..., 0] = high
    parts = [
        rng.integers(low, high, shape, endpoint=True),
        rng.integers(low // 16, high // 16 + 1, shape),
        np.where(rng.random(shape) < 0.5, low, high),
        np.broadcast_to(rng.integers(low, high, (*shape[:2], 1), endpoint=True), shape),
        peak,
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_compiled_is_interpreted(program: csim.Program, kernel: Kernel) -> None:
    x = inputs(kernel)
    assert x.shape[0] * x.shape[1] >= 1_000
    np.testing.assert_array_equal(program.run(kernel, {"x": x})["y"], run(kernel, {"x": x})["y"])
    # A kernel of one number would say nothing.
    assert np.unique(run(kernel, {"x": x})["y"]).size > 1 or x.shape[-1] == 1


def test_simulated_tables_are_plain_integers() -> None:
    """Entries of ap_int types are constructed one by one, and g++ took minutes for a table of 15,000."""
    kernel = softmax.fixed(1, 2, BYTE, BYTE, FixedMethod(input_bits=4, output_bits=4), name="small")
    assert "static const LK_TABLE(ap_uint<21>, std::uint32_t) small_exponentials[" in cpp.constants(kernel)
    # What is read has its width again.
    assert "ap_uint<21>(small_exponentials[" in cpp.function(kernel)
