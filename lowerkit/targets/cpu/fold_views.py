"""Reshaped, transposed and broadcast constants, by numpy: TVM compiles a function to fold each of them."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


@tvm.transform.module_pass(opt_level=0, name="FoldViews")
class FoldViews:
    """Put constants in the place of such operators of constants."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass."""
        folder = _Folder(module)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                folder.builder_.update_func(variable, folder.visit_expr(function))
        return folder.builder_.get()


@mutator
class _Folder(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        #: Variable -> what it is always.
        self.constants: dict[relax.Var, tvm.ir.GenericConst] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Bind no name for a constant, where it is not seen from outside."""
        folded = self._folded(binding.value) if isinstance(binding.var, relax.DataflowVar) else None
        if folded is None:
            super().visit_var_binding_(binding)
        else:
            self.constants[binding.var] = folded

    def visit_dataflow_var_(self, variable: relax.Var) -> relax.Expr:
        """The constant that the variable is."""
        return self.constants.get(variable) or super().visit_dataflow_var_(variable)

    def _folded(self, call: relax.Expr) -> tvm.ir.GenericConst | None:
        """The constant that `call` gives, or None."""
        name = getattr(getattr(call, "op", None), "name", None)
        if name not in ("relax.broadcast_to", "relax.permute_dims", "relax.reshape"):
            return None
        argument = self.constants.get(call.args[0], call.args[0])
        if not isinstance(argument, tvm.ir.GenericConst):
            return None
        array = argument.value.numpy()
        if name == "relax.permute_dims":
            axes = call.attrs.axes
            return relax.const(
                np.transpose(array, None if axes is None else [int(axis) for axis in axes]).copy()
            )
        shape = getattr(call.ty.shape, "values", None)
        if shape is None or not all(isinstance(dim, tvm.tirx.IntImm) for dim in shape):
            return None
        view = np.reshape if name == "relax.reshape" else np.broadcast_to
        return relax.const(np.ascontiguousarray(view(array, [int(dim) for dim in shape])))
