"""The first import of TVM, without what it would look for in vain, or find and not need."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

#: TVM imports torch where it is installed, to exchange tensors with it, and takes a second or two to find out that
#: its library has no distributed runtime.
_NOT_NEEDED = ("torch", "tvm.runtime.disco")


def import_tvm() -> None:
    """Import TVM; what it leaves out can be imported as usual afterwards."""
    with _absent(_NOT_NEEDED):
        import tvm  # noqa: F401


@contextlib.contextmanager
def _absent(modules: tuple[str, ...]) -> Iterator[None]:
    """Meanwhile, importing one of `modules` that is not there yet fails as if it were not installed."""
    hidden = [name for name in modules if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
