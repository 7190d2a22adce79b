"""Checks that the queues of a network of layers are deep enough for it never to halt."""

from __future__ import annotations

from lowerkit.errors import UnsupportedError
from lowerkit.targets.fpga.dataflow import on_cycles
from lowerkit.targets.fpga.rtl.design import Rtl


def check_queues(rtl: Rtl) -> None:
    """The argument of `dataflow`, for the queues that are there.

    A layer takes a sample and gives one, whatever gaps and stalls there are. Where every link on an undirected cycle
    of the network holds a whole sample, layers could work one after the other, a sample at a time; so they cannot
    halt each other in any order. Other links separate what is before them from what is behind.

    Raises UnsupportedError, with the link, for a design that has a shallower one on a cycle.
    """
    around = on_cycles({link.name: (link.writer, link.reader) for link in rtl.links})
    for link in rtl.links:
        if link.name in around and link.depth < link.size:
            raise UnsupportedError(
                f"channel {link.name} from {link.writer} to {link.reader} holds {link.depth} codes of a sample's "
                f"{link.size}, and other paths join them: the design may halt",
                hint=f"give it a depth of {link.size} codes or more",
            )
