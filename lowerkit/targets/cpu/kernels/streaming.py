"""Stores that go past the caches, for results that are larger than those, and loads ahead of their use.

TIR has neither. They are functions of LLVM's language, imported and inlined into the kernel; a fence at the end of
each task makes the stores visible before other threads are told that it is done.
"""

from __future__ import annotations

import platform

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

#: Elements of a result from which it is stored so: 16 MiB, and what is read is as much.
_FROM = 1 << 22
_FENCE, _PREFETCH = "lowerkit_fence", "lowerkit_prefetch"
#: Float32 elements of a cache line, and bytes ahead of its use that a line is asked for: half of a page, at the ends
#: of which the processor's own prefetching stops.
LINE, _AHEAD = 16, 2048


def streams(elements: int, width: int, lanes: int) -> bool:
    """Whether a result of `elements`, in rows of `width`, is stored past the caches by vectors of `lanes`."""
    return elements >= _FROM and width % lanes == 0


def store_past_caches(buffer: tirx.Buffer, value: Expr, at: Expr, lanes: int) -> None:
    """`value`, `lanes` of float32, from `at` on, which is a multiple of `lanes`."""
    place = tirx.address_of(buffer[at])
    T.evaluate(tirx.call_extern("int32", f"lowerkit_stream_{lanes}", place, value))


def fence() -> None:
    """What this thread stored is visible to the others from here on."""
    T.evaluate(tirx.call_extern("int32", _FENCE))


def prefetch(buffer: tirx.Buffer, at: Expr) -> None:
    """Ask for the line that lies some way behind `at`; it may lie beyond the buffer, where nothing is read."""
    T.evaluate(tirx.call_extern("int32", _PREFETCH, tirx.address_of(buffer[at])))


def imported(lanes: int) -> T.frame.AttrFrame:
    """The scope in which those above may be called."""
    return T.attr({"pragma_import_llvm": _definitions(lanes)})


def _definitions(lanes: int) -> str:
    x86 = platform.machine() == "x86_64"
    return f"""
define linkonce_odr i32 @lowerkit_stream_{lanes}(ptr %p, <{lanes} x float> %v) alwaysinline {{
  store <{lanes} x float> %v, ptr %p, align {4 * lanes}, !nontemporal !0
  ret i32 0
}}
{"declare void @llvm.x86.sse.sfence()" if x86 else ""}
define linkonce_odr i32 @{_FENCE}() alwaysinline {{
  {"call void @llvm.x86.sse.sfence()" if x86 else "fence release"}
  ret i32 0
}}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define linkonce_odr i32 @{_PREFETCH}(ptr %p) alwaysinline {{
  %ahead = getelementptr i8, ptr %p, i64 {_AHEAD}
  call void @llvm.prefetch.p0(ptr %ahead, i32 0, i32 3, i32 1)
  ret i32 0
}}
!0 = !{{i32 1}}
"""
