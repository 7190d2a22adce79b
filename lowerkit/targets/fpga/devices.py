"""FPGAs by the names of their boards: what is on the chip.

Sources: ZCU102 and ZCU104: Zynq UltraScale+ MPSoC data sheet overview (AMD DS891), XCZU9EG and XCZU7EV; PYNQ-Z2:
Zynq-7000 SoC data sheet overview (AMD DS190), XC7Z020; ECP5: ECP5 and ECP5-5G family data sheet (Lattice
FPGA-DS-02012), LFE5U-25F, -45F and -85F, table 1.1, whose look-up tables are rounded: these are those that nextpnr
places on.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowerkit.errors import PlanError


@dataclass(frozen=True)
class Device:
    """A chip.

    Attributes:
        memory_bits: of its block memories, without the logic that may serve as memory.
        multipliers: blocks, and their operands' widths in bits, signs included.
        luts: look-up tables, of 6 inputs for AMD's and 4 for Lattice's.
        part: for vitis_hls.tcl; None where that tool does not know the device.
        nextpnr: the options by which nextpnr-ecp5 knows it: size and the largest package, for the most pins; None
            where it does not.
    """

    name: str
    chip: str
    memory_bits: int
    multipliers: int
    operands: tuple[int, int]
    luts: int
    part: str | None
    nextpnr: tuple[str, str] | None = None


def _kilobits(blocks: int, each: int) -> int:
    return blocks * each * 1024


def _ecp5(size: str, package: str, blocks: int, multipliers: int, luts: int) -> Device:
    return Device(
        f"ecp5-{size}k",
        f"LFE5U-{size}F",
        _kilobits(blocks, 18),
        multipliers,
        (18, 18),
        luts,
        None,
        (f"--{size}k", package),
    )


DEVICES = {
    d.name: d
    for d in (
        Device("zcu102", "XCZU9EG", _kilobits(912, 36), 2520, (27, 18), 274_080, "xczu9eg-ffvb1156-2-e"),
        Device(
            "zcu104",
            "XCZU7EV",
            _kilobits(312, 36) + _kilobits(96, 288),
            1728,
            (27, 18),
            230_400,
            "xczu7ev-ffvc1156-2-e",
        ),
        Device("pynq-z2", "XC7Z020", _kilobits(140, 36), 220, (25, 18), 53_200, "xc7z020clg400-1"),
        _ecp5("25", "CABGA381", 56, 28, 24_288),
        _ecp5("45", "CABGA554", 108, 72, 43_848),
        _ecp5("85", "CABGA756", 208, 156, 83_640),
    )
}
#: Whose part the tool's script names, and whose multipliers are counted, where no device is.
DEFAULT = DEVICES["zcu102"]


def device(name: str) -> Device:
    """By name, in whatever case. Raises PlanError that lists them."""
    found = DEVICES.get(name.lower())
    if found is None:
        raise PlanError(f"option device = '{name}' is no known device", hint=f"known: {', '.join(DEVICES)}")
    return found
