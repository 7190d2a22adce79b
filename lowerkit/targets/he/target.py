"""The he target: see the package's docstring."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from lowerkit.errors import ArtifactError, DataError, LowerkitWarning, PlanError, ToolError, UnsupportedError
from lowerkit.targets.base import CostTable, Progress, Runner, Target
from lowerkit.targets.he import artifact, measured, parameters, reading, report, simulator
from lowerkit.targets.he.bootstrapping import REDUCTION
from lowerkit.targets.he.chains import LONGEST
from lowerkit.targets.he.packing.affine import PACKINGS
from lowerkit.targets.he.parameters import Planned, Range
from lowerkit.targets.he.program import Polynomial, Program
from lowerkit.targets.he.runtime.files import RunError
from lowerkit.targets.he.sizes import sizes
from lowerkit.targets.he.worker import Worker, importable

#: Functions of one variable, which polynomials on calibrated intervals replace: family -> canonical operator. The
#: last three are what is left of softmax, of divisions by encrypted numbers and of layer norms.
FUNCTIONS: Mapping[str, str] = {
    "erf": "Erf",
    "gelu": "Gelu",
    "mish": "Mish",
    "sigmoid": "Sigmoid",
    "silu": "Silu",
    "softplus": "Softplus",
    "tanh": "Tanh",
    "relu": "Relu",
    "exp": "Exp",
    "reciprocal": "Reciprocal",
    "rsqrt": "Rsqrt",
}
#: How the last four are replaced: ReLU has a kink, of the others the relative error matters, and intervals of the first
#: two are wide.
PRECISE: Mapping[str, str] = {
    "relu": "interval-poly:degree=31",
    "exp": "interval-poly:degree=31",
    "reciprocal": "interval-poly:degree=31",
    "rsqrt": "interval-poly:degree=15",
}
#: Calibration samples that planning runs the packed program on, at most.
PLANNED = 64
#: With fewer rotation keys every rotation becomes many.
FEWEST_KEYS = 2


class HeTarget(Target):
    """Writes a client and a server that compute on CKKS ciphertexts. Options: see `docs/he.md`."""

    name = "he"
    summary = "a client and a server that compute on encrypted numbers (CKKS, with SEAL or OpenFHE)"
    defaults: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(FUNCTIONS, "interval-poly"),
        **PRECISE,
    }
    expands = frozenset({"Attention", "Div", "LayerNormalization", "RMSNormalization", "Softmax"})
    #: Maxima on request alone, as what replaces them is another function.
    must_lower = frozenset({*FUNCTIONS.values(), "MaxPool"})
    native = frozenset(
        f"{kind}{op}" for kind in (reading.POLYNOMIAL, reading.COMPOSITE) for op in FUNCTIONS.values()
    )
    plans_bodies = True
    #: The lowered graph is in float32; what noise costs is for the option precision and the report.
    tolerance = 1e-2
    self_checked = 1  # which may take minutes
    options: ClassVar[Mapping[str, Any]] = {
        "backend": "seal",
        "openfhe_python": "",
        "ring": 0,
        "scale": 0,
        "head": 0,
        "packing": "auto",
        "parts": 0,
        "pairs": "auto",
        "precision": 1e-4,
        "margin": 1.5,
        "ranges": {},
        "max_memory": 0,
        "encode_ahead": True,
        "max_rotation_keys": 0,
        "digits": 0,
        "refresh": 0,
        "secret": "sparse",
        "levels": 0,
        "bootstraps": {},
        "insecure_for_testing": False,
    }

    def blocker(self, node: ir.Node) -> str | None:
        """Operators that are no polynomial."""
        return reading.reason(node)

    def asked_precision(self, options: Mapping[str, Any]) -> float:
        """The option `precision`."""
        return float(_checked(options)["precision"])

    def complete(
        self,
        model: ir.Model,
        samples: Sequence[Mapping[str, np.ndarray]],
        options: Mapping[str, Any],
        *,
        synthetic: bool = False,
    ) -> dict[str, Any]:
        """The options with the inputs' ranges, the ring and the scale."""
        merged = _checked(options)
        seen = {name: _widened([s[name] for s in samples], merged["margin"]) for name in samples[0]}
        merged["ranges"] = {**seen, **merged["ranges"]}
        program = reading.read(model)
        completed = parameters.plan(program, samples[:PLANNED], merged["ranges"], merged)
        return _within_memory(program, completed) if merged["max_memory"] else completed

    def planned(self, model: ir.Model, options: Mapping[str, Any]) -> Planned:
        """The packed and the levelled program of a lowered graph, for complete options."""
        return parameters.build(reading.read(model), _checked(options))

    def emit(
        self,
        model: ir.Model,
        options: Mapping[str, Any],
        directory: Path,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        """Write `client/` and `server/`, and the programs between, as text, where stages are kept."""
        merged = _checked(options)
        planned = self.planned(model, merged)
        artifact.write(model, planned, merged, directory)
        if (stages := directory / "stages").is_dir():
            programs = {
                "tensor": planned.program,
                "packed": planned.network.program,
                "levelled": planned.levelled,
            }
            for name, program in programs.items():
                (stages / f"{name}-program.txt").write_text(f"{program}\n", encoding="utf-8")
        return merged

    def open(self, directory: Path, options: Mapping[str, Any]) -> Runner:
        """Client and server with fresh keys: every run encrypts, evaluates and decrypts."""
        if _checked(options)["backend"] == "openfhe" and not importable():
            return Worker(directory, options.get("openfhe_python", ""))
        return _Both(directory)

    def costs(self, directory: Path) -> tuple[CostTable, ...]:
        """Operations by layer."""
        from lowerkit.artifact import Artifact

        loaded = Artifact.load(directory)
        lowered = self.planned(loaded.model(), loaded.plan.options).levelled
        ahead = _checked(loaded.plan.options)["encode_ahead"]
        return (report.table(lowered, measured.known(directory), ahead=ahead),)

    def probe(self, model: ir.Model, options: Mapping[str, Any], taps: Sequence[str]) -> Runner:
        """The simulator, with noise as of encryption, which sees intermediate values too."""
        planned = self.planned(model, options)
        network, lowered = planned.network, planned.levelled
        shapes = {v.name: tuple(v.shape.numpy()) for v in _values(model) if v.shape is not None}
        multiples = planned.program.multiples
        known = {name: (name, 1.0) for name in network.tensors}
        known |= {name: held for name, held in multiples.items() if held[0] in network.tensors}
        names = dict.fromkeys([*network.outputs, *(tap for tap in taps if tap in known)])

        def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = simulator.simulate(lowered, parameters.vectors_of(network, inputs))
            _check_intervals(planned, found)
            values = {}
            for name in names:
                held, multiple = known[name]
                numbers = np.zeros(shapes[name])
                for part in network.tensors[held]:
                    slots = found[lowered.origin[part.value]]
                    numbers.flat[part.elements] = slots[part.slots] / multiple
                values[name] = numbers.astype(np.float32)
            return values

        return run


class _Both:
    """Both sides of an artifact, through what their commands call."""

    def __init__(self, directory: Path) -> None:
        from lowerkit.targets.he.runtime.client import Client
        from lowerkit.targets.he.runtime.server import Server

        try:
            self.client = Client(directory / "client")
            _, public = self.client.generate()
            self.server = Server(directory / "server", public)
        except RunError as error:
            if "pip install" in str(error):
                raise ToolError(str(error)) from None
            raise ArtifactError(str(error)) from None

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            query = self.client.encrypt(inputs)
        except RunError as error:
            raise DataError(
                str(error), hint="compile with calibration data like it, or more margin"
            ) from None
        try:
            answer = self.server.evaluate(query)
            found = self.client.decrypt(answer)
        except RunError as error:
            raise ArtifactError(str(error)) from None
        measured.remember(self.server.circuit, self.server.seconds)
        return found


def _check_intervals(planned: Planned, found: Sequence[np.ndarray]) -> None:
    """Warn of the first polynomial whose operand leaves [-1, 1], to which its interval was mapped."""
    for step in planned.program.steps:
        if isinstance(step, Polynomial):
            operands = (
                found[planned.levelled.origin[part.value]][part.slots]
                for part in planned.network.tensors[step.value]
            )
            # Noise may carry a number at the interval's end a little beyond it.
            if (reach := max(float(np.abs(x).max()) for x in operands)) > 1 + 1e-3:
                warnings.warn(
                    f"node '{step.node}': its input leaves the interval of its polynomial, {reach:.3g} times as "
                    "far from the middle as the end; compile with calibration data like it, or a larger margin",
                    LowerkitWarning,
                    stacklevel=3,
                )
                return


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs]


def _widened(arrays: Sequence[np.ndarray], margin: float) -> Range:
    """The arrays' range, `margin` times as wide about its middle."""
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    half = max(margin * (high - low) / 2, 1e-6)
    return ((low + high) / 2 - half, (low + high) / 2 + half)


def _within_memory(program: Program, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with plaintexts encoded when they are used, and then fewer rotation keys, if memory needs it.

    Raises UnsupportedError where the server would hold more than the option max_memory with any number.
    """
    chosen, lowered = options, parameters.build(program, options).levelled
    keys = len(lowered.steps())
    while (needed := sizes(lowered, ahead=chosen["encode_ahead"]).server / 2**30) > options["max_memory"]:
        if chosen["encode_ahead"]:
            chosen = {**chosen, "encode_ahead": False}
            continue
        keys //= 2
        if options["max_rotation_keys"] or keys < FEWEST_KEYS:
            raise UnsupportedError(
                f"target 'he': the server would hold {needed:.3g} GiB, and the option max_memory is "
                f"{options['max_memory']:g}",
                hint="give it more, or compile for a smaller --shape or another packing",
            )
        chosen = {**chosen, "max_rotation_keys": keys}
        lowered = parameters.build(program, chosen).levelled
    return chosen


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """All options. Raises PlanError for one that cannot be."""
    merged = HeTarget.merged(options)
    if merged["backend"] not in parameters.DEGREES:
        raise PlanError(
            f"option backend must be one of {', '.join(parameters.DEGREES)}, not {merged['backend']!r}"
        )
    known = parameters.DEGREES[merged["backend"]]
    if merged["insecure_for_testing"]:
        known = (2048, *known) if 4096 in known else (2048, 4096, *known)
    if merged["ring"] not in (0, *known):
        degrees = ", ".join(map(str, known))
        raise PlanError(
            f"option ring must be 0 (the smallest that fits) or {degrees}, not {merged['ring']!r}"
        )
    longest = LONGEST - 1
    limits = {
        "scale": longest,
        "head": longest,
        "digits": 64,
        "levels": 64,
        "parts": 1 << 10,
        "max_rotation_keys": 1 << 15,
    }
    for key, largest in limits.items():
        value = merged[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
            raise PlanError(f"option {key} must be a whole number up to {largest}, or 0, not {value!r}")
    if merged["refresh"] not in (0, *parameters.SLOTS):
        raise PlanError(f"option refresh must be 0 or one of {parameters.SLOTS}, not {merged['refresh']!r}")
    for key, least, most in (("precision", 0.0, 1e6), ("margin", 1.0, 100.0), ("max_memory", 0.0, 1e6)):
        value = merged[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise PlanError(f"option {key} must be a number from {least:g} to {most:g}, not {value!r}")
    if merged["secret"] not in REDUCTION:
        raise PlanError(f"option secret must be one of {', '.join(REDUCTION)}, not {merged['secret']!r}")
    if merged["packing"] not in PACKINGS:
        raise PlanError(f"option packing must be one of {', '.join(PACKINGS)}, not {merged['packing']!r}")
    pairs = merged["pairs"]
    if pairs != "auto" and (isinstance(pairs, bool) or pairs not in range(parameters.MOST_PAIRS + 1)):
        raise PlanError(
            f"option pairs must be auto or a whole number up to {parameters.MOST_PAIRS}, not {pairs!r}"
        )
    for key in ("encode_ahead", "insecure_for_testing"):
        if not isinstance(merged[key], bool):
            raise PlanError(f"option {key} must be true or false")
    return merged
