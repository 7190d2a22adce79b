"""Relax → machine code: TVM's passes, lowerkit's schedules, a program in C, and the linker."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax, tirx

from lowerkit.errors import LowerkitError, ToolError, UnsupportedError
from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.arena import ALIGNMENT
from lowerkit.targets.cpu.c_source import CONSTANTS, c_source
from lowerkit.targets.cpu.fold_views import FoldViews
from lowerkit.targets.cpu.functions import VectorFunctions
from lowerkit.targets.cpu.kernels.gemm.machine import machine
from lowerkit.targets.cpu.kernels.gemm.operators import matmul
from lowerkit.targets.cpu.layout import ChannelsLast
from lowerkit.targets.cpu.native import write_object
from lowerkit.targets.cpu.program import Call, Program, leaves, make_program
from lowerkit.targets.cpu.schedule import ScheduleForCpu
from lowerkit.targets.cpu.tuning import Tuning

#: C sources and headers of the runtime, which every library holds.
RUNTIME = Path(__file__).parent / "runtime"
#: Files of `RUNTIME` that go into the artifact, for those who link with the library.
PUBLIC = ("lowerkit.h", "example.c")
#: The runtime and the program run on every processor of the architecture, and find out whether the kernels do.
CFLAGS = ("-std=c11", "-O2", "-fPIC", "-pthread", "-Wall", "-Wextra")
#: Bytes of constants that code can address.
_LARGEST = 2**31 - 2**24


def check_weights(model: ir.Model) -> None:
    """Refuse, before anything is compiled, a model whose weights no library holds; equal ones are stored once."""
    weights = [
        value.const_value for value in model.graph.initializers.values() if value.const_value is not None
    ]
    if sum(weight.nbytes for weight in weights) > _LARGEST:
        distinct = {hashlib.sha256(weight.tobytes()).digest(): weight.nbytes for weight in weights}
        _check_size(sum(distinct.values()))


def _check_size(constants: int) -> None:
    if constants > _LARGEST:
        raise UnsupportedError(
            f"the model's constants take {constants} bytes, and a library holds at most {_LARGEST}",
            hint="store weights in fewer bits, as --linear bf16 or int8 does, or divide the model",
        )


def build_library(
    module: tvm.IRModule,
    cpu: str,
    path: Path,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    tuning: Tuning | None = None,
) -> dict[str, int]:
    """Compile `module`, with these inputs and outputs (name, dtype, shape), into the shared library `path`.

    Equal modules give equal bytes. Returns the bytes of `code`, `constants` and `arena`. Raises UnsupportedError for
    what has no static program, and ToolError where there is no compiler or linker, or TVM or one of them fails.
    """
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory(prefix="lowerkit-") as name:
        pool.submit(runtime_objects)  # gcc works meanwhile; what fails will fail again when it is asked for
        program, kernels = lower(module, cpu, tuning)
        directory = Path(name)
        write_objects(program, kernels, cpu, directory, inputs, outputs)
        link(directory, path)
    return {
        "code": path.stat().st_size - len(program.constants),
        "constants": len(program.constants),
        "arena": program.arena,
    }


def lower(
    module: tvm.IRModule, cpu: str, tuning: Tuning | None = None
) -> tuple[Program, dict[str, tirx.PrimFunc]]:
    """The program of `module`, and its kernels by name, scheduled for `cpu`: as tuned, and the rest by rules."""
    with _tvm_failures(), _target(cpu), tvm.transform.PassContext(opt_level=3):
        module = _fused(cpu)(module)
        if tuning is not None:
            module = tuning.apply(module)
        module = VectorFunctions()(ScheduleForCpu(cpu)(module))  # type: ignore[operator]
    program = make_program(module)
    used = {step.function for step in leaves(program.steps) if isinstance(step, Call)}
    functions = {f"k_{variable.name_hint}": function for variable, function in module.functions_items()}
    return program, {name: function for name, function in functions.items() if name in used}


def write_objects(
    program: Program,
    kernels: Mapping[str, tirx.PrimFunc],
    cpu: str,
    directory: Path,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
) -> None:
    """Write what is the model's own in the library into `directory`, as C and as object files.

    Files: `kernels.o`, `program.c`, `program.o`, `constants.bin`, `constants.S`, `constants.o`.
    """
    _check_size(len(program.constants))
    with _tvm_failures(), _target(cpu) as target, tvm.transform.PassContext(opt_level=3):
        parallel = write_object(kernels, target, directory / "kernels.o")
    source = c_source(
        program,
        inputs=inputs,
        outputs=outputs,
        kernels={name: len(function.params) for name, function in kernels.items()},
        parallel=parallel,
        cpu=cpu,
        flags=features.level(cpu).flags,
        version=importlib.metadata.version("lowerkit"),
    )
    (directory / "program.c").write_text(source, encoding="utf-8")
    (directory / "constants.bin").write_bytes(program.constants)
    (directory / "constants.S").write_text(_CONSTANTS, encoding="utf-8")
    _gcc([*CFLAGS, f"-I{RUNTIME}", "-c", "program.c", "constants.S"], directory)


def link(directory: Path, path: Path) -> None:
    """Link what `write_objects` wrote into `directory`, and the runtime, into the shared library `path`."""
    runtime = [_write(directory / f"runtime_{stem}.o", data) for stem, data in runtime_objects().items()]
    # Only what lowerkit.h declares is visible: the runtime's own names may be in the process already.
    exports = _write(directory / "exports", b"{ global: lowerkit_*; local: *; };\n")
    # -s leaves out the symbol table, which is not needed and holds names of temporary files.
    how = ["-shared", "-s", "-pthread", f"-Wl,--version-script={exports}", f"-Wl,-soname,{path.name}"]
    objects = [directory / f"{stem}.o" for stem in ("program", "constants", "kernels")]
    _gcc([*how, "-Wl,-Bsymbolic,--build-id=none,-z,noexecstack", "-o", path, *objects, *runtime, "-lm"])


#: The assembler copies the bytes as they are, however many.
_CONSTANTS = f"""\
    .section .rodata
    .balign {ALIGNMENT}
    .globl {CONSTANTS}
    .hidden {CONSTANTS}
{CONSTANTS}:
    .incbin "constants.bin"
    .section .note.GNU-stack,"",@progbits
"""


@functools.cache
def runtime_objects() -> dict[str, bytes]:
    """The compiled runtime, by the names of its source files."""
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as name:
        directory = Path(name)
        sources = sorted(file for file in RUNTIME.glob("*.c") if file.name not in PUBLIC)
        _gcc([*CFLAGS, "-c", *sources], directory)
        return {file.stem: (directory / f"{file.stem}.o").read_bytes() for file in sources}


def _target(cpu: str) -> tvm.target.Target:
    return tvm.target.Target(features.tvm_target(cpu))


@contextlib.contextmanager
def _tvm_failures() -> Iterator[None]:
    """TVM's passes raise anything, from TypeError to InternalError: make it a ToolError."""
    try:
        yield
    except LowerkitError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ToolError(f"TVM cannot compile the graph: {reason}") from error


def _gcc(arguments: Sequence[str | Path], directory: Path | None = None) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        raise ToolError(
            "no gcc to compile and link the library with", hint="install it: apt-get install gcc libc6-dev"
        )
    command = [compiler, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    if done.returncode:
        raise ToolError(f"gcc failed: {done.stderr.strip() or done.returncode}")


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _fused(cpu: str) -> tvm.transform.Pass:
    """Operators become loops, and loops are fused."""
    t = relax.transform
    return tvm.transform.Sequential(
        [
            ChannelsLast(cpu),
            FoldViews(),
            t.CanonicalizeBindings(),  # nothing is fused across a second name of a value
            relax.backend.DispatchSortScan(),  # CumSum
            t.LegalizeOps({"relax.matmul": matmul(machine(cpu))}),
            t.EliminateCommonSubexpr(),  # products of one tensor quantise it once
            t.AnnotateTIROpPattern(),
            t.FoldConstant(),
            t.FuseOps(),
            t.FuseTIR(),
            t.RewriteDataflowReshape(),
            t.DeadCodeElimination(),
        ]
    )
