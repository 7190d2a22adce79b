"""Bytes of keys, ciphertexts and memory."""

from __future__ import annotations

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


def sizes(program: Levelled) -> Sizes:
    """The sizes for a levelled program; a number of a ciphertext takes 8 bytes."""
    chain = program.chain
    residues = 8 * chain.degree
    levels = len(chain.primes)
    # One pair of polynomials over all primes for each digit of the decomposition, which is by primes.
    key = 2 * levels * (levels + 1) * residues
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
    return Sizes(
        keys=key * (len(program.steps()) + relinearised),
        query=sum(h for h, op in zip(held, program.ops, strict=True) if op.kind == "input"),
        answer=sum(held[i] for i in program.outputs),
        plains=sum((op.level + 1) * residues for op in program.ops if op.kind in ("add_plain", "mul_plain")),
        values=most,
    )
