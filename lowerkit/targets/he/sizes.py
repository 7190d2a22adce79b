"""Bytes of keys, ciphertexts and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowerkit.targets.he.levelled import Levelled


@dataclass(frozen=True)
class Sizes:
    """In bytes.

    Attributes:
        keys: evaluation keys: relinearisation and rotations.
        query, answer: ciphertexts of one sample.
        plains: encoded plaintexts, which the server holds.
        values: ciphertexts that the server holds at the same time, at most.
    """

    keys: int
    query: int
    answer: int
    plains: int
    values: int

    @property
    def server(self) -> int:
        """What the server holds while it evaluates."""
        return self.keys + self.query + self.plains + self.values


def sizes(program: Levelled, *, ahead: bool = True) -> Sizes:
    """The sizes for a levelled program, whose plaintexts are encoded ahead or when they are used.

    A number of a ciphertext takes 8 bytes.
    """
    chain = program.chain
    residues = 8 * chain.degree
    levels = len(chain.primes)
    # One pair of polynomials over all primes for each digit of the decomposition.
    key = 2 * chain.digits * (levels + len(chain.specials)) * residues
    relinearised = any(op.kind == "mul" for op in program.ops)
    held = [2 * (op.level + 1) * residues for op in program.ops]
    last = {a: i for i, op in enumerate(program.ops) for a in op.args}
    most = now = 0
    for i, op in enumerate(program.ops):
        if op.kind == "input":
            continue
        now += held[i]
        most = max(most, now)
        now -= sum(held[a] for a in set(op.args) if last[a] == i and program.ops[a].kind != "input")
    rotations = len(program.steps())
    transforms = 0
    if chain.refresh is not None:
        # Each transform of `budget` levels has matrices of about 2 slots^(1/budget) diagonals, encoded beside the
        # keys, of which baby and giant steps need the root; its sums over copies need one key for each doubling.
        slots, budget = chain.refresh.slots, chain.refresh.budget[0]
        diagonals = 2 * slots ** (1 / budget)
        rotations += round(4 * budget * math.sqrt(diagonals)) + (chain.slots // slots).bit_length() + 1
        transforms = round(2 * budget * diagonals) * (levels + len(chain.specials)) * residues
    plains = [(op.level + 1) * residues for op in program.ops if op.kind in ("add_plain", "mul_plain")]
    return Sizes(
        keys=key * (rotations + (relinearised or chain.refresh is not None)),
        query=sum(h for h, op in zip(held, program.ops, strict=True) if op.kind == "input"),
        answer=sum(held[i] for i in program.outputs),
        plains=transforms + (sum(plains) if ahead else max(plains, default=0)),
        values=most,
    )
