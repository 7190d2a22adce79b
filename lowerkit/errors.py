"""The one exception a user meets.

lowerkit refuses rather than guesses. A refusal is one line: where, why, and the way out; the command
line prints it on stderr and exits with 2.
"""

from __future__ import annotations


class LowerkitError(Exception):
    """A refusal with a reason and, where known, the node at fault and the way out.

    Args:
        reason: what is wrong, as a clause without a final full stop.
        node: the node at fault, as ``describe_node`` of `lowerkit.graph.domain` writes it.
        hint: what the user can do about it.
    """

    def __init__(self, reason: str, *, node: str | None = None, hint: str | None = None) -> None:
        self.reason = " ".join(reason.split())
        self.node = node
        self.hint = " ".join(hint.split()) if hint else None
        where = f"{node}: " if node else ""
        way_out = f". {self.hint[0].upper()}{self.hint[1:]}" if self.hint else ""
        super().__init__(f"{where}{self.reason}{way_out}")


class ModelError(LowerkitError):
    """The model file cannot be read, is invalid, or is not fully specified."""


class UnsupportedError(LowerkitError):
    """The model is valid, but the chosen target cannot run a node of it."""


class PlanError(LowerkitError):
    """A plan, a method name or a method option does not fit the model."""


class DataError(LowerkitError):
    """Calibration or validation data does not fit the model's inputs."""


class ArtifactError(LowerkitError):
    """An artifact directory cannot be written, or is incomplete, edited or corrupted."""


class ToolError(LowerkitError):
    """A program or library that the target needs is missing or failed."""


class LowerkitWarning(UserWarning):
    """Something the user should know that does not stop the work."""
