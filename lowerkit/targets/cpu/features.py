"""Which processors an artifact runs on: levels of features, by name."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowerkit.errors import PlanError


@dataclass(frozen=True)
class Level:
    """What generated code may presume.

    Attributes:
        mcpu: the processor that LLVM compiles for.
        flags: the features of `mcpu` and more, as /proc/cpuinfo names them; the runtime asks for each
            (`runtime/features.c`).
        lanes: float32 lanes of a vector register; the schedules' inner tiles are multiples of it.
        mattr: features beyond those of `mcpu`, as LLVM names them.
        has: what templates ask for by name: "vnni", "bf16".
    """

    mcpu: str
    flags: tuple[str, ...]
    lanes: int
    mattr: tuple[str, ...] = ()
    has: frozenset[str] = frozenset()


# The x86-64 levels are those of the System V psABI (https://gitlab.com/x86-psABIs/x86-64-ABI), whose names LLVM and
# gcc share. VNNI came with Cascade Lake and Zen 4, bf16 with Cooper Lake and Zen 4.
_V2 = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = (*_V4, "avx512_vnni")
_BF16 = (*_VNNI, "avx512_bf16")
_X86 = {
    "x86-64-v2": Level("x86-64-v2", _V2, 4),
    "x86-64-v3": Level("x86-64-v3", _V3, 8),
    "x86-64-v4": Level("x86-64-v4", _V4, 16),
    "x86-64-v4-vnni": Level("x86-64-v4", _VNNI, 16, ("+avx512vnni",), frozenset({"vnni"})),
    "x86-64-v4-bf16": Level(
        "x86-64-v4", _BF16, 16, ("+avx512vnni", "+avx512bf16"), frozenset({"vnni", "bf16"})
    ),
}
_ARM = {"generic": Level("generic", (), 4)}
#: Machine -> its levels by name, each with what the one before it has, and more.
LEVELS: dict[str, dict[str, Level]] = {"x86_64": _X86, "aarch64": _ARM, "arm64": _ARM}

#: The option that stands for the best level of the machine that compiles.
NATIVE = "native"


def levels() -> dict[str, Level]:
    """The levels of this machine's architecture."""
    return LEVELS.get(platform.machine(), _ARM)


def default_cpu() -> str:
    """What artifacts are compiled for by default: one level per architecture, never what is detected.

    Detection would make the same compilation give other bytes on another machine.
    """
    return "x86-64-v3" if platform.machine() == "x86_64" else "generic"


def level(cpu: str) -> Level:
    """The level called `cpu`. Raises PlanError on an unknown name."""
    known = levels()
    if cpu not in known:
        raise PlanError(
            f"option cpu = '{cpu}' is not known here", hint=f"known: {', '.join((*known, NATIVE))}"
        )
    return known[cpu]


def has(cpu: str, feature: str) -> bool:
    """Whether code for `cpu` may use "vnni" (u8 by s8 products summed in int32) or "bf16" (products of pairs)."""
    return feature in level(cpu).has


def tvm_target(cpu: str) -> dict[str, Any]:
    """The TVM target for `cpu`, as the dictionary that `tvm.target.Target` takes."""
    chosen = level(cpu)
    target: dict[str, Any] = {"kind": "llvm", "mcpu": chosen.mcpu}
    return {**target, "mattr": list(chosen.mattr)} if chosen.mattr else target


def native_cpu() -> str:
    """The last level of which this machine has every feature; where that is not known, the default."""
    flags = machine_flags()
    running = [name for name, chosen in levels().items() if flags.issuperset(chosen.flags)]
    return running[-1] if flags and running else default_cpu()


def machine_flags() -> frozenset[str]:
    """The features of this machine, as /proc/cpuinfo names them; none where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()
    )
