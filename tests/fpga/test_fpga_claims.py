"""Ranges that a kernel's author claims beyond what intervals prove."""

import numpy as np
import pytest

from lowerkit.targets.fpga.lang import cpp
from lowerkit.targets.fpga.lang.expr import Range
from lowerkit.targets.fpga.lang.interpret import OutOfRange, run
from lowerkit.targets.fpga.lang.program import Builder


def test_a_claimed_range_is_the_type_and_is_checked() -> None:
    k = Builder("f", "x^2")
    x, y = k.input("x", (3,), Range(-4, 4)), k.output("y", (3,), Range(0, 16))
    with k.loop("i", 3) as i:
        k.store(y, i, k.let("square", x[i] * x[i], Range(0, 16)))
    kernel = k.finish()
    assert "const ap_uint<5> square" in cpp.function(kernel)
    assert run(kernel, {"x": np.array([[-4, 0, 3]])})["y"].tolist() == [[16, 0, 9]]

    k = Builder("f", "x^2, with a claim that is wrong")
    x, y = k.input("x", (3,), Range(-4, 4)), k.output("y", (3,), Range(0, 16))
    with k.loop("i", 3) as i:
        k.store(y, i, k.let("square", x[i] * x[i], Range(0, 9)))
    kernel = k.finish()
    with pytest.raises(OutOfRange, match="square takes"):
        run(kernel, {"x": np.array([[-4, 0, 3]])})
