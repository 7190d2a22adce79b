"""TIR functions → an object file whose kernels take plain pointers.

A kernel is `int32_t name(void *buffer, ...)`, with a pointer to the first element for each parameter of the TIR
function, 64-byte aligned. What a kernel writes overlaps none of its other parameters (`program.py`), which is what
LLVM's `noalias` asks for; those that it only reads may be the same memory, as queries, keys and values of one tensor
are. It returns 0, or else `lowerkit_error()` says why. TVM's own
entry points take boxed tensors, which they check at every call; what they check is known here when compiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import tvm
from tvm import s_tir, tirx
from tvm.ir import PrimType
from tvm.tirx.buffer import buffer_data_pointer_type

from lowerkit.targets.cpu.arena import ALIGNMENT

#: Bytes below which a kernel's scratch memory is on the stack; beyond, it is the runtime's to keep. Tiles of
#: accumulators have to be there, where LLVM makes registers of them.
STACK = 16 << 10


def write_object(kernels: Mapping[str, tirx.PrimFunc], target: tvm.target.Target, path: Path) -> bool:
    """Compile scheduled functions, by name, into the object file `path`; whether any has a parallel loop."""
    bind = tirx.transform.BindTarget(target.with_host(target))
    module = _lowering()(bind(tvm.IRModule(dict(kernels))))
    named = {variable.name_hint: function for variable, function in module.functions_items()}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in named.items()})
    tvm.get_global_func("target.build.llvm")(module, target).write_to_file(str(path), "o")
    return any(_has_parallel_loop(function.body) for function in named.values())


def _lowering() -> tvm.transform.Pass:
    """TVM's default pipeline (`tvm/s_tir/pipeline.py`) without the passes for other devices and, in place of its
    entry points, `_TakePointers`."""
    s, t = s_tir.transform, tirx.transform
    return tvm.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            s.AnnotateIrregularLoop(),
            s.InjectSoftwarePipeline(),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            s.InjectVirtualThread(),
            s.InjectDoubleBuffer(),
            t.StorageRewrite(),
            s.HoistIfThenElse(),
            t.UnrollLoop(),
            s.RenormalizeSplitPattern(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
            t.FP8ComputeLegalize(),
            t.VerifyMemory(),
            _TakePointers,
            t.FP8StorageLegalize(),
            t.BF16StorageLegalize(),
            _KeepOnStack,
            t.LowerTVMBuiltin(),
            t.LowerIntrin(),
        ]
    )


@tirx.transform.prim_func_pass(opt_level=0, name="lowerkit.TakePointers")
def _TakePointers(function: tirx.PrimFunc, _: tvm.IRModule, __: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Parameters become pointers, and the result a status: LLVM's code generator returns 0 at the end."""
    buffers = list(function.params)
    pointers = [tirx.Var(buffer.name, buffer_data_pointer_type(buffer)) for buffer in buffers]
    body = function.body
    for buffer in buffers:
        body = tirx.AttrStmt(buffer, "storage_alignment", tirx.const(ALIGNMENT, "int32"), body)
    # LowerTVMBuiltin wants to know where to ask for scratch memory; the runtime ignores it.
    for attribute, value in (("device_type", 1), ("device_id", 0)):
        body = tirx.AttrStmt("default", attribute, tirx.const(value, "int32"), body)
    # te.extern leaves the place of a buffer's first element open.
    offsets = [b.ty.elem_offset for b in buffers if isinstance(b.ty.elem_offset, tirx.Var)]
    bound = [tirx.Bind(offset, tirx.const(0, str(offset.ty.dtype))) for offset in offsets]
    declared = [
        tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(buffers, pointers, strict=True)
    ]
    return tirx.PrimFunc(pointers, tirx.SeqStmt([*bound, *declared, body]), PrimType("int32"), function.attrs)


@tirx.transform.prim_func_pass(opt_level=0, name="lowerkit.KeepOnStack")
def _KeepOnStack(function: tirx.PrimFunc, _: tvm.IRModule, __: tvm.transform.PassContext) -> tirx.PrimFunc:
    """Small scratch memory goes on the stack: TVM asks the runtime for all that is "local", at every tile."""
    return function.with_body(_keep_on_stack(function.body))


def _keep_on_stack(node: tirx.Stmt) -> tirx.Stmt:
    if isinstance(node, tirx.AllocBuffer):
        size = math.prod(int(dim) for dim in node.buffer.shape) * _bytes(node.buffer.dtype)
        annotations = {**(node.annotations or {}), "disable_lower_builtin": tirx.const(1, "int32")}
        return tirx.AllocBuffer(node.buffer, annotations) if 0 < size <= STACK else node
    if isinstance(node, tirx.SeqStmt):
        return tirx.SeqStmt([_keep_on_stack(part) for part in node.seq])
    if isinstance(node, tirx.AttrStmt):
        return tirx.AttrStmt(node.node, node.attr_key, node.value, _keep_on_stack(node.body))
    if isinstance(node, tirx.For):
        head = (node.loop_var, node.min, node.extent, node.kind)
        return tirx.For(*head, _keep_on_stack(node.body), node.thread_binding, node.annotations, node.step)
    if isinstance(node, tirx.While):
        return tirx.While(node.condition, _keep_on_stack(node.body))
    if isinstance(node, tirx.IfThenElse):
        otherwise = _keep_on_stack(node.else_case) if node.else_case is not None else None
        return tirx.IfThenElse(node.condition, _keep_on_stack(node.then_case), otherwise)
    return node


def _has_parallel_loop(node: tirx.Stmt) -> bool:
    if isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
        return True
    inner = [
        *getattr(node, "seq", ()),
        *(getattr(node, name, None) for name in ("body", "then_case", "else_case")),
    ]
    return any(_has_parallel_loop(part) for part in inner if part is not None)


def _bytes(dtype: str) -> int:
    """Bytes of an element, which may be a vector."""
    described = tvm.DataType(str(dtype))
    return (int(described.bits) * int(described.lanes) + 7) // 8
