"""Which processors an artifact runs on: a name that LLVM knows, and the features that it presumes."""

from __future__ import annotations

import platform

from lowerkit.errors import PlanError

#: `cpu` option -> /proc/cpuinfo flags that generated code may use. The x86-64 levels are those of the
#: System V psABI (https://gitlab.com/x86-psABIs/x86-64-ABI), whose names LLVM and gcc share.
_V2 = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = (*_V4, "avx512_vnni")
_BF16 = (*_VNNI, "avx512_bf16")
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "x86-64-v2": _V2,
        "x86-64-v3": _V3,
        "x86-64-v4": _V4,
        "x86-64-v4-vnni": _VNNI,
        "x86-64-v4-bf16": _BF16,
    },
    "aarch64": {"generic": ()},
    "arm64": {"generic": ()},
}
#: Float32 lanes of a vector register, by `cpu`; the schedules' inner tiles are multiples of it.
LANES = {
    "x86-64-v2": 4,
    "x86-64-v3": 8,
    "x86-64-v4": 16,
    "x86-64-v4-vnni": 16,
    "x86-64-v4-bf16": 16,
    "generic": 4,
}


def default_cpu() -> str:
    """What artifacts are compiled for by default: one level per architecture, never what is detected.

    Detection would make the same compilation give other bytes on another machine.
    """
    return "x86-64-v3" if platform.machine() == "x86_64" else "generic"


def required_flags(cpu: str) -> tuple[str, ...]:
    """The flags that code for `cpu` presumes. Raises PlanError on an unknown name."""
    known = LEVELS.get(platform.machine(), LEVELS["aarch64"])
    if cpu not in known:
        raise PlanError(f"option cpu = '{cpu}' is not known here", hint=f"known: {', '.join(known)}")
    return known[cpu]


def has(cpu: str, feature: str) -> bool:
    """Whether code for `cpu` may use AVX-512 `vnni` or `bf16`."""
    return any(f"avx512_{feature}" in level.get(cpu, ()) for level in LEVELS.values())


def llvm_target(cpu: str) -> dict[str, object]:
    """`cpu` as TVM's LLVM back end takes it: the level, and what it has beyond."""
    level, *beyond = cpu.rsplit("-", 1) if cpu.count("-") == 3 else [cpu]
    target: dict[str, object] = {"kind": "llvm", "mcpu": level}
    if beyond:
        target["mattr"] = [f"+avx512{name}" for name in ("vnni", "bf16") if has(cpu, name)]
    return target
