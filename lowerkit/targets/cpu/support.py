"""Which operators TVM lacks or gets wrong."""

from __future__ import annotations

import onnx_ir as ir


def reason(node: ir.Node) -> str | None:
    """Why the target cannot run `node`, or None."""
    if node.domain not in ("", "ai.onnx"):
        return f"operators of domain '{node.domain}' are not known"
    return None
