"""Options of the RTL flow, which are the fpga target's as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowerkit.errors import PlanError
from lowerkit.targets.fpga.rtl.implement import DEVICES, ROUTERS

OPTIONS: Mapping[str, Any] = {
    "flow": "hls",
    "clock": 0.0,
    "place": True,
    "seeds": 3,
    "search": "clock",
    "periods": {},
    "router": "",
    "bitstream": False,
}
#: Where none is given: the largest.
DEVICE = "ecp5-85k"
#: MHz; no FPGA's logic is faster.
FASTEST = 1000
FLOWS = ("hls", "rtl")


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fpga target's options, those of this flow checked, and with a device. Raises PlanError."""
    found = dict(options)
    if found["flow"] not in FLOWS:
        raise PlanError(f"option flow must be one of {', '.join(FLOWS)}, not {found['flow']!r}")
    clock = found["clock"]
    if (
        isinstance(clock, bool)
        or not isinstance(clock, (int, float))
        or not (clock == 0 or 1 <= clock <= FASTEST)
    ):
        raise PlanError(
            f"option clock must be a number of MHz from 1 to {FASTEST}, or 0 for none, not {clock!r}"
        )
    found["clock"] = float(clock)
    if found["flow"] == "hls":
        for name, default in OPTIONS.items():
            if name not in ("flow", "clock") and found[name] != default:
                raise PlanError(f"option {name} is of the RTL flow", hint="add --flow rtl, or leave it out")
        return found
    _check(found)
    return {**found, "device": found["device"].lower() or DEVICE}


def searches(options: Mapping[str, Any]) -> bool:
    """Whether the flow searches: where that is said, or a clock is asked for and nothing is."""
    wanted: bool = options["clock"] > 0 if options["search"] == "clock" else options["search"]
    return wanted


def _check(options: Mapping[str, Any]) -> None:
    for name in ("place", "bitstream"):
        if not isinstance(options[name], bool):
            raise PlanError(f"option {name} must be true or false, not {options[name]!r}")
    if options["search"] not in (True, False, "clock") or isinstance(options["search"], int) != isinstance(
        options["search"], bool
    ):
        raise PlanError(f"option search must be true, false or clock, not {options['search']!r}")
    seeds = options["seeds"]
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= 99:
        raise PlanError(f"option seeds must be a number of placements from 1 to 99, not {seeds!r}")
    if options["router"] not in ("", *ROUTERS):
        known = ", ".join(ROUTERS)
        raise PlanError(f"option router must be {known} or empty, for one by size, not {options['router']!r}")
    for layer, period in options["periods"].items():
        if isinstance(period, bool) or not isinstance(period, int) or not 100 <= period <= 100_000:
            raise PlanError(
                f"option periods of layer '{layer}' must be ps from 100 to 100000, not {period!r}"
            )
    if options["device"] and options["device"].lower() not in DEVICES:
        raise PlanError(
            f"--flow rtl places with open tools, which do not know {options['device']}",
            hint=f"choose --device {', '.join(DEVICES)}, or --flow hls",
        )
    for name in ("clock", "bitstream"):
        if options[name] and not options["place"]:
            raise PlanError(f"option {name} needs a placement", hint="take option place = false away")
    if options["shared_linear"]:
        raise PlanError("option shared_linear is of the HLS flow", hint="take it away, or --flow hls")
    if options["interface"] != "memory":
        raise PlanError(
            f"option interface = '{options['interface']}' is of the HLS flow, and RTL has streams",
            hint="leave it out, or --flow hls",
        )
