"""The layers that hls4ml knows lowerkit's kernels as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from hls4ml.model.attributes import Attribute, ConfigurableAttribute
from hls4ml.model.layers import Layer
from hls4ml.model.types import FixedPrecisionType, IntegerPrecisionType, RoundingMode, SaturationMode

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.converters import CONVERTERS
from lowerkit.targets.fpga.formats import Fixed, Format
from lowerkit.targets.fpga.lang.program import Kernel
from lowerkit.targets.fpga.lowering import Context, design_of


class LowerkitKernel(Layer):  # type: ignore[misc]
    """A kernel with the formats that it was made for."""

    _expected_attributes = (
        Attribute("kernel", value_type=Kernel),
        Attribute("shapes", value_type=list),
        Attribute("formats", value_type=list),
    )

    def initialize(self) -> None:
        """Output variables, of the shapes and formats given."""
        for i, (name, shape, form) in enumerate(
            zip(self.outputs, self.attributes["shapes"], self.attributes["formats"], strict=True)
        ):
            last = "" if len(self.outputs) == 1 else f"_{i}"
            self.add_output_variable(
                list(shape),
                out_name=name,
                var_name=f"layer{{index}}_out{last}",
                type_name=f"layer{{index}}{last}_t",
                precision=precision_of(form),
            )
            # hls4ml declares the types that are attributes.
            self.set_attr(f"result{i}_t", self.get_output_variable(name).type)

    def kernel(self) -> Kernel:
        """The kernel, named as a C identifier."""
        found: Kernel = self.attributes["kernel"]
        return found


class LowerkitNode(Layer):  # type: ignore[misc]
    """An ONNX node, whose kernel is made when hls4ml has settled the formats of what it reads and writes."""

    _expected_attributes = (
        # A model of this one node, its constants among the initializers.
        Attribute("model", value_type=ir.Model),
        Attribute("shape", value_type=list),
        ConfigurableAttribute("weight_width", default=16),
    )

    def initialize(self) -> None:
        """The output variable; its precision is what hls4ml's configuration says of `result`."""
        self.add_output_variable(self.attributes["shape"])

    def kernel(self) -> Kernel:
        """The kernel that the target fpga makes of the node.

        Raises UnsupportedError where it makes none, or where the result keeps another format than the configuration
        has for it.
        """
        model: ir.Model = self.attributes["model"]
        node = next(iter(model.graph))
        formats = [format_of(self.get_input_variable(name).type.precision) for name in self.inputs]
        wanted = format_of(self.get_output_variable().type.precision)
        names = [value.name or "" for value in model.graph.inputs]
        output = model.graph.outputs[0].name or ""
        context = Context(
            {**dict(zip(names, formats, strict=True)), output: wanted},
            self.attributes["weight_width"],
            {node.name or "": self.get_attr("reuse_factor", 1)},
        )
        design = design_of(model, context, CONVERTERS)
        (layer,) = design.layers
        if (found := design.values[output].format) != wanted:
            raise UnsupportedError(
                f"the result keeps the format {found}, and hls4ml's configuration has {wanted}",
                node=f"node '{node.name}' ({node.op_type})",
                hint=f"set its result precision to {found}",
            )
        return layer.kernel


def precision_of(form: Format) -> Any:
    """hls4ml's type of the format's numbers; what is converted to it is rounded half to even and saturates.

    Raises UnsupportedError for codes with a scale and a zero point, which hls4ml has no type for.
    """
    if not isinstance(form, Fixed):
        raise UnsupportedError(
            f"hls4ml has no type for numbers of format {form}", hint="use the target's own project"
        )
    return FixedPrecisionType(
        form.width, form.integer, form.signed, RoundingMode.RND_CONV, SaturationMode.SAT
    )


def format_of(precision: Any) -> Fixed:
    """The format of hls4ml's numbers. Raises UnsupportedError for numbers that are not in fixed point."""
    if isinstance(precision, FixedPrecisionType):
        return Fixed(precision.width, precision.integer, precision.signed)
    if isinstance(precision, IntegerPrecisionType):
        return Fixed(precision.width, precision.width, precision.signed)
    raise UnsupportedError(f"hls4ml's precision {precision} is no fixed-point format")


def sizes(shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Shapes as hls4ml has them: without a leading batch of 1, but with one axis at least."""
    return [list(s[1:] if len(s) > 1 and s[0] == 1 else s) or [1] for s in shapes]
