"""The command line. Exit codes: 0 done, 1 an error bound was broken, 2 refused."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from lowerkit import __version__, tables
from lowerkit.errors import DataError, LowerkitError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

app = typer.Typer(
    name="lowerkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(
        "Lower a trained ONNX model to hardware that cannot afford the functions it was trained with.\n\n"
        "A first tour:\n\n"
        "  lowerkit inspect model.onnx --target cpu\n\n"
        "  lowerkit compile model.onnx --target cpu -o out --calibration samples.npz\n\n"
        "  lowerkit run out --input one.npz --output result.npz\n\n"
        "  lowerkit validate out --data test.npz --labels labels.npz\n\n"
        "Exit codes: 0 done, 1 an error bound that you set was broken, 2 refused with a reason."
    ),
)

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)]
ArtifactDir = Annotated[
    Path, typer.Argument(metavar="OUT", help="An artifact directory.", show_default=False)
]
TargetName = Annotated[str, typer.Option("--target", "-t", help="See `lowerkit targets`.")]
ShapeFlag = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME:1,128", help="Fix an input's shape; may be repeated."),
]
CalibrationFlag = Annotated[
    Path | None,
    typer.Option(metavar="D.npz", help="Samples: one array per graph input, samples along the first axis."),
]
SoftmaxFlag = Annotated[
    str | None, typer.Option(metavar="METHOD", help="Method for every softmax, or `keep`.")
]
GeluFlag = Annotated[str | None, typer.Option(metavar="METHOD", help="Method for every GELU, or `keep`.")]
NormFlag = Annotated[
    str | None, typer.Option(metavar="METHOD", help="Method for every Layer/RMSNormalization, or `keep`.")
]
AttentionFlag = Annotated[
    str | None,
    typer.Option(metavar="METHOD", help="Method in the place of every whole attention, or `keep`."),
]
LinearFlag = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Method for every MatMul, Gemm and Conv with constant weights: bf16, int8, mixed, ...",
    ),
]
MethodFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="FAMILY=METHOD",
        help="Method for every node of a family, e.g. silu=table; may be repeated. "
        "Here and above, options follow a colon: table:segments=64,limit=4.",
    ),
]
ThreadsFlag = Annotated[int | None, typer.Option(min=1, help="Threads of the compiled code.")]
TuneFlag = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0, help="Search so long for faster loops (cpu target)."),
]
OptionFlag = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="A target option; see `lowerkit targets`."),
]
DeviceFlag = Annotated[
    str | None,
    typer.Option(metavar="BOARD", help="The FPGA that the design has to fit, e.g. zcu102 or ecp5-85k."),
]
FlowFlag = Annotated[
    str | None,
    typer.Option(metavar="FLOW", help="What an FPGA's design is written in: hls (C++) or rtl (Verilog)."),
]
ClockFlag = Annotated[
    float | None, typer.Option(metavar="MHZ", help="The clock that an FPGA's design has to keep.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"lowerkit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: lowerkit inspect model.onnx --target cpu --shape input_ids:1,128")
def inspect(
    model: ModelFile,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Judge the model for a target.")
    ] = None,
    shape: ShapeFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what is in a model: operators, sizes, non-linearities, and what blocks a target."""
    from lowerkit import api

    _show(as_json, api.inspect(model, target, parse_shapes(shape)), tables.inspection)


@app.command(epilog="Edit the output and feed it back: lowerkit compile model.onnx --plan plan.toml -o out")
def plan(
    model: ModelFile,
    target: TargetName = "cpu",
    calibration: CalibrationFlag = None,
    shape: ShapeFlag = None,
    softmax: SoftmaxFlag = None,
    gelu: GeluFlag = None,
    norm: NormFlag = None,
    attention: AttentionFlag = None,
    linear: LinearFlag = None,
    method: MethodFlag = None,
    threads: ThreadsFlag = None,
    device: DeviceFlag = None,
    flow: FlowFlag = None,
    clock: ClockFlag = None,
    option: OptionFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the plan that `compile` would follow, as TOML."""
    from lowerkit import api

    made = api.plan(
        model,
        target,
        calibration=calibration,
        shape=parse_shapes(shape),
        methods=_methods(method, softmax=softmax, gelu=gelu, norm=norm, attention=attention, linear=linear),
        options=_options(option, threads=threads, device=device, flow=flow, clock=clock),
    )
    typer.echo(json.dumps(tables.to_json(made), indent=2) if as_json else made.to_toml(), nl=as_json)


@app.command(epilog="Example: lowerkit compile model.onnx -o out --softmax poly-exp --gelu table --norm keep")
def compile(
    model: ModelFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Directory to write.")],
    target: TargetName = "cpu",
    plan: Annotated[Path | None, typer.Option(metavar="P.toml", help="Follow this plan.")] = None,
    calibration: CalibrationFlag = None,
    shape: ShapeFlag = None,
    softmax: SoftmaxFlag = None,
    gelu: GeluFlag = None,
    norm: NormFlag = None,
    attention: AttentionFlag = None,
    linear: LinearFlag = None,
    method: MethodFlag = None,
    threads: ThreadsFlag = None,
    tune: TuneFlag = None,
    device: DeviceFlag = None,
    flow: FlowFlag = None,
    clock: ClockFlag = None,
    option: OptionFlag = None,
    dump_stages: Annotated[
        bool, typer.Option(help="Keep the graph after every stage in OUT/stages.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace an artifact that is already at OUT.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Lower a model and write an artifact that runs, with a report of what it cost."""
    from lowerkit import api
    from lowerkit.plan import Plan

    with _progress(as_json) as progress:
        artifact = api.compile(
            model,
            output,
            target,
            plan=Plan.read(plan) if plan is not None else None,
            calibration=calibration,
            shape=parse_shapes(shape),
            methods=_methods(
                method, softmax=softmax, gelu=gelu, norm=norm, attention=attention, linear=linear
            ),
            options=_options(option, threads=threads, tune=tune, device=device, flow=flow, clock=clock),
            force=force,
            dump_stages=dump_stages,
            progress=progress,
        )
    _show(as_json, artifact, tables.artifact)


@app.command(epilog="Example: lowerkit run out --input one.npz --output result.npz")
def run(
    artifact: ArtifactDir,
    input: Annotated[Path, typer.Option(metavar="IN.npz", help="One array per graph input.")],
    output: Annotated[Path, typer.Option(metavar="O.npz", help="Where to write the outputs.")],
    threads: ThreadsFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Run an artifact on samples and save its outputs, concatenated along the first axis."""
    from lowerkit import api

    with _progress(as_json) as progress:
        results = api.run(artifact, input, output, options=_options(None, threads=threads), progress=progress)
    _show(as_json, results, tables.run_results)


@app.command(
    epilog="Example: lowerkit validate out --data test.npz --labels labels.npz --min-agreement 0.995"
)
def validate(
    artifact: ArtifactDir,
    data: Annotated[Path, typer.Option(metavar="D.npz", help="Samples: one array per graph input.")],
    labels: Annotated[Path | None, typer.Option(metavar="L.npz", help="Class labels, for accuracy.")] = None,
    max_error: Annotated[
        float | None, typer.Option(min=0, help="Largest error allowed, relative to the output's scale.")
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest top-1 agreement with the original allowed.")
    ] = None,
    layers: Annotated[bool, typer.Option(help="Also measure each layer (compiles a probe).")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Measure original against lowered against artifact on data, and rewrite the artifact's report.

    Exits with 1 when a bound is broken.
    """
    from lowerkit import api

    if max_error is not None and min_agreement is not None:
        raise DataError("--max-error and --min-agreement exclude each other")
    with _progress(as_json) as progress:
        validation = api.validate(artifact, data, labels, layers=layers, progress=progress)
    _show(as_json, validation, tables.validation)
    if not as_json:
        typer.echo(f"report: {artifact / 'report.html'}")
    broken = validation.check(max_error=max_error, min_agreement=min_agreement)
    for reason in broken:
        typer.echo(f"lowerkit: bound broken: {reason}", err=True)
    if broken:
        raise typer.Exit(1)


@app.command()
def passes(as_json: JsonFlag = False) -> None:
    """List the passes of the pipeline and the methods, with contract and error bound."""
    _show(as_json, tables.pass_list(), tables.passes)


@app.command()
def targets(as_json: JsonFlag = False) -> None:
    """List the installed targets, with their options and default methods."""
    _show(as_json, tables.target_list(), tables.targets)


def parse_shapes(flags: list[str] | None) -> dict[str, list[int]]:
    """`["x:1,128"]` as `{"x": [1, 128]}`. The name may itself contain colons. Raises DataError."""
    shapes: dict[str, list[int]] = {}
    for flag in flags or []:
        name, _, dims = flag.rpartition(":")
        try:
            shape = [int(dim) for dim in dims.split(",")]
        except ValueError:
            shape = []
        if not name or not shape:
            raise DataError(f"--shape {flag} is not of the form NAME:1,128")
        if name in shapes:
            raise DataError(f"--shape names input '{name}' twice")
        shapes[name] = shape
    return shapes


def _methods(pairs: list[str] | None, **flags: str | None) -> dict[str, str]:
    methods = {family: name for family, name in flags.items() if name is not None}
    for pair in pairs or []:
        family, equals, name = pair.partition("=")
        if not family or not equals or not name:
            raise DataError(f"--method {pair} is not of the form FAMILY=METHOD")
        if family in methods:
            raise DataError(f"two methods are given for family '{family}'")
        methods[family] = name
    return methods


def _options(flags: list[str] | None, **own: int | float | str | None) -> dict[str, Any]:
    """Target options from --option, and from those that have flags of their own."""
    options: dict[str, Any] = {}
    for flag in flags or []:
        key, equals, value = flag.partition("=")
        if not key or not equals:
            raise DataError(f"--option {flag} is not of the form KEY=VALUE")
        options[key] = _value(value)
    return {**options, **{key: value for key, value in own.items() if value is not None}}


def _value(text: str) -> Any:
    """A TOML value; a word needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _show(as_json: bool, value: Any, table: Any) -> None:
    if as_json:
        typer.echo(json.dumps(tables.to_json(value), indent=2))
        return
    for part in table(value):
        Console().print(part, soft_wrap=isinstance(part, str), highlight=False, markup=False)


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A progress bar on stderr, shown on terminals alone."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"lowerkit: warning: {message}", file=sys.stderr)


def main() -> None:
    """Entry point: refusals become one line on stderr and exit code 2."""
    from lowerkit.errors import LowerkitWarning

    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", category=LowerkitWarning)
    warnings.showwarning = _warn
    for library in ("onnxscript", "onnx_ir", "matplotlib"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    # A terminated compile leaves nothing behind: SystemExit unwinds the staging directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app(standalone_mode=True)
    except LowerkitError as error:
        print(f"lowerkit: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
