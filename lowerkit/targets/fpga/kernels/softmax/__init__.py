"""Softmax over rows as integer kernels: input codes [rows, columns] of a format, output codes of a format."""

from lowerkit.targets.fpga.kernels.softmax.binary import binary
from lowerkit.targets.fpga.kernels.softmax.fixed import fixed
from lowerkit.targets.fpga.kernels.softmax.log_quantised import log_quantised
from lowerkit.targets.fpga.kernels.softmax.online import online
from lowerkit.targets.fpga.kernels.softmax.power import power
from lowerkit.targets.fpga.kernels.softmax.quantised import quantised
from lowerkit.targets.fpga.kernels.softmax.shift import shift

__all__ = ["binary", "fixed", "log_quantised", "online", "power", "quantised", "shift"]
