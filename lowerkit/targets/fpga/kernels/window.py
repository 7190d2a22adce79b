"""Windows that move over images: where they lie, and what they read beyond the border."""

from __future__ import annotations

from dataclasses import dataclass

from lowerkit.targets.fpga.lang.expr import Array, Expr, Operand, Select, clamp, equal, expr


@dataclass(frozen=True)
class Window:
    """A window's geometry along height and width.

    Attributes:
        kernel, stride, dilation: in elements.
        pads: before and after the image, ((top, bottom), (left, right)).
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)

    def out(self, image: tuple[int, int]) -> tuple[int, int]:
        """The output's height and width. Raises ValueError for an image too small."""
        sizes = []
        for size, k, s, (before, after), d in zip(
            image, self.kernel, self.stride, self.pads, self.dilation, strict=True
        ):
            room = size + before + after - (d * (k - 1) + 1)
            if room < 0:
                raise ValueError(f"an image of {image} is smaller than a window of {self.kernel}")
            sizes.append(room // s + 1)
        return sizes[0], sizes[1]

    def at(self, axis: int, position: Operand, element: Operand) -> Operand:
        """The image's row or column, beyond the border perhaps."""
        stride, dilation, before = self.stride[axis], self.dilation[axis], self.pads[axis][0]
        moved = position * stride if stride > 1 else position
        inside = element * dilation if dilation > 1 else element
        place = moved if isinstance(inside, int) and inside == 0 else inside + moved
        return place - before if before else place

    def inside(self, image: tuple[int, int], axis: int, position: int) -> int:
        """How many of the window's elements lie in the image, at an output position along an axis."""
        places = [
            position * self.stride[axis] + e * self.dilation[axis] - self.pads[axis][0]
            for e in range(self.kernel[axis])
        ]
        return sum(0 <= place < image[axis] for place in places)


def read(array: Array, lead: tuple[Operand, ...], y: Operand, x: Operand, beyond: int) -> Expr:
    """array[*lead, y, x], or `beyond` outside of the image; nothing is compared where it cannot be left."""
    height, width = array.shape[-2:]
    held = [clamp(y, 0, height - 1), clamp(x, 0, width - 1)]
    found: Expr = array[(*lead, *held)]
    for place, kept in zip((y, x), held, strict=True):
        if expr(place).range != kept.range:
            found = Select(equal(place, kept), found, expr(beyond))
    return found
