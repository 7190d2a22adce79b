"""Reading ahead: asking for memory that a later tile computes with.

The processor's own prefetcher follows a stream, but not over the end of a page, and starts anew with every panel.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

#: Into the second-level cache and beyond: what is computed with now keeps the first.
DEFINITION = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define linkonce_odr i32 @lowerkit_prefetch(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 2, i32 1)
  ret i32 0
}
"""


def prefetch(buffer: tirx.Var, at: Expr) -> tirx.Stmt:
    """Ask for the line that holds element `at` of `buffer`, which may lie behind its end."""
    place = tirx.address_of(tirx.BufferLoad(buffer, [at]))
    return tirx.Evaluate(tirx.call_extern("int32", "lowerkit_prefetch", place))
