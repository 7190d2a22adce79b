"""FPGAs by the names of their boards: what is on the chip.

Sources: ZCU102 and ZCU104: Zynq UltraScale+ MPSoC data sheet overview (AMD DS891), XCZU9EG and XCZU7EV; PYNQ-Z2:
Zynq-7000 SoC data sheet overview (AMD DS190), XC7Z020; ECP5-85: ECP5 and ECP5-5G family data sheet (Lattice
FPGA-DS-02012), LFE5UM-85F.
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
    """

    name: str
    chip: str
    memory_bits: int
    multipliers: int
    operands: tuple[int, int]
    luts: int
    part: str | None


def _kilobits(blocks: int, each: int) -> int:
    return blocks * each * 1024


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
        Device("ecp5-85", "LFE5UM-85F", _kilobits(208, 18), 156, (18, 18), 84_000, None),
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
