"""hls4ml's stable softmax in lowerkit's integer language, so that both are measured in the same way.

Source: hls4ml 1.3.0, nnet_utils/nnet_activation.h, softmax_stable, with the types and tables of 1024 entries that
`config_from_onnx_model` proposes for `fixed<16,6>` (see `benchmarks.hls4ml_softmax`): the largest logit is found first;
a table of exp is read at the first 10 bits of the difference to it, which is an ap_ufixed<15,5> and wraps; the sum
addresses a table of inverses by the first 10 of its 18 bits, and the product with it is cut off.

hls4ml computes all elements of a row at once; here there is one a cycle, as in lowerkit's kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.lang.expr import Array, Range, Slice, maximum
from lowerkit.targets.fpga.lang.program import Builder, Kernel

LOGITS = Fixed(16, 6)
DIFFERENCE = Fixed(15, 5, signed=False)
#: Of exponentials, their sum and its inverse.
TABLE = Fixed(18, 8)
ADDRESS_BITS = 10


def stable(rows: int, columns: int, *, name: str = "stable") -> Kernel:
    """x [rows, columns] to y [rows, columns], codes of ap_fixed<16,6>, bit for bit those of hls4ml.

    Raises ValueError for more than 127 columns, whose sum hls4ml saturates.
    """
    if columns > TABLE.high:
        raise ValueError(f"rows of {columns} elements, whose sum may pass {TABLE.high:g}")
    k = Builder(name, f"hls4ml's stable softmax over rows of {columns}, {LOGITS}")
    x = k.input("x", (rows, columns), LOGITS.range)
    y = k.output("y", (rows, columns), LOGITS.range)
    exponentials = k.constant(
        Array.constant(f"{name}_exponentials", _table(DIFFERENCE, lambda d: np.exp(-d)))
    )
    # No sum is below 1, the largest element's exponential.
    inverses = k.constant(Array.constant(f"{name}_inverses", _table(TABLE, lambda s: 1 / s.clip(1))))
    with k.loop("row", rows) as row:
        best = k.register("best", LOGITS.range.low, LOGITS.range)
        with k.loop("find", columns, serial=True, pipeline=True) as i:
            k.update(best, maximum(best, x[row, i]))
        e = k.local("e", (columns,), exponentials.range)
        total = k.register("total", 0, Range(0, columns << TABLE.fraction))
        with k.loop("add", columns, serial=True, pipeline=True) as i:
            below = Slice(best - x[row, i], 0, DIFFERENCE.width)
            entry = k.let("entry", exponentials[below >> (DIFFERENCE.width - ADDRESS_BITS)])
            k.store(e, i, entry)
            k.update(total, total + entry)
        inverse = k.let("inverse", inverses[total >> (TABLE.width - ADDRESS_BITS)])
        with k.loop("multiply", columns, pipeline=True) as i:
            k.store(y, (row, i), (e[i] * inverse) >> (2 * TABLE.fraction - LOGITS.fraction))
    return k.finish()


def _table(address: Fixed, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Codes of `TABLE` [1024], the function of the numbers that begin with each address's bits."""
    codes = np.arange(1 << ADDRESS_BITS) << (address.width - ADDRESS_BITS)
    if address.signed:
        codes = codes[: len(codes) // 2]
    x = address.dequantise(codes)
    return np.floor(function(x) * 2.0**TABLE.fraction + 0.5).astype(np.int64).clip(max=TABLE.range.high)
