"""Relax → machine code: TVM's passes, lowerkit's schedules, and the linker."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import tvm
from tvm import relax

from lowerkit.errors import ToolError
from lowerkit.targets.cpu.functions import VectorFunctions
from lowerkit.targets.cpu.kernels import packed
from lowerkit.targets.cpu.schedule import ScheduleForCpu


def build_library(module: tvm.IRModule, cpu: str, path: Path) -> None:
    """Compile `module` for processor `cpu` into the shared library `path`.

    Equal modules give equal bytes. Raises ToolError when there is no linker, or TVM or the linker fails.
    """
    linker = shutil.which("g++")
    if linker is None:
        raise ToolError("no g++ to link the library with", hint="install it: apt-get install g++")
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})

    def link(output: str, objects: list[str], **_: object) -> None:
        # -s leaves out the symbol table, which is not needed and holds names of temporary files.
        command = [linker, "-shared", "-fPIC", "-s", "-o", output, *objects]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(f"g++ failed: {done.stderr.strip() or done.returncode}")

    with target, tvm.transform.PassContext(opt_level=3):
        try:
            executable = tvm.compile(module, target, relax_pipeline=_pipeline(cpu))
        except Exception as error:  # TVM's passes raise anything, from TypeError to InternalError
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ToolError(f"TVM cannot compile the graph: {reason}") from error
        executable.export_library(str(path), fcompile=link)


def _pipeline(cpu: str) -> tvm.transform.Pass:
    t = relax.transform
    return tvm.transform.Sequential(
        [
            relax.backend.DispatchSampling(),
            relax.backend.DispatchSortScan(),
            t.LegalizeOps(packed.legalizations()),
            t.AnnotateTIROpPattern(),
            t.FoldConstant(),
            t.FuseOps(),
            t.FuseTIR(),
            t.RewriteDataflowReshape(),
            t.DeadCodeElimination(),
            ScheduleForCpu(cpu),
            VectorFunctions(),
            t.ToNonDataflow(),
            t.RemovePurityChecking(),
            t.CallTIRRewrite(),
            t.StaticPlanBlockMemory(),
            t.LowerAllocTensor(),
            t.KillAfterLastUse(),
            t.LowerRuntimeBuiltin(),
            t.ComputePrimValue(),
            t.VMShapeLower(),
            t.AttachGlobalSymbol(),
        ]
    )
