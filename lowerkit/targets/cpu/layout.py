"""Images with their channels last: convolutions compute so, and what lies between them follows.

Every value that has such a form is kept as a *twin*, an expression of the same numbers with the second axis moved to
the end. Elementwise operators, pools, means over the image, concatenations, reshapes of the image and permutations
of values with twins are computed on the twins; all other operators are given the original order, which is made when
it is asked for. So axes are moved where a chain of image operators begins and ends, and nowhere within.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from lowerkit.targets.cpu import features
from lowerkit.targets.cpu.kernels.conv import Window, conv2d, conv2d_by_channel
from lowerkit.targets.cpu.kernels.conv_transpose import conv2d_transpose

#: Operators whose every element is a function of the same element of their arguments.
_ELEMENTWISE_NAMES = """
abs add ceil clip cos divide erf exp floor log maximum minimum multiply negative nn.gelu nn.gelu_tanh nn.leakyrelu
nn.relu nn.silu nn.softplus power round rsqrt sigmoid sin sqrt square subtract tanh
"""
_ELEMENTWISE = frozenset(f"relax.{name}" for name in _ELEMENTWISE_NAMES.split())
_RESHAPES = frozenset({"relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten"})
_REDUCTIONS = frozenset({"relax.mean", "relax.sum", "relax.max", "relax.min"})
_POOLS = {"relax.nn.max_pool2d": relax.op.nn.max_pool2d, "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d}


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
class ChannelsLast:
    """Compute images with their channels last, with kernels for processor `cpu`."""

    def __init__(self, cpu: str) -> None:
        self.lanes = features.level(cpu).lanes

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The pass."""
        if not any(_convolves(function) for function in module.functions.values()):
            return module
        rewriter = _Rewriter(module, self.lanes)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                rewriter.builder_.update_func(variable, rewriter.visit_expr(function))
        return rewriter.builder_.get()


def _convolves(function: tvm.ir.BaseFunc) -> bool:
    """Whether there is an image to speak of: a convolution, or what has its channels last and is to have them first."""
    bindings = (
        binding.value
        for block in (function.body.blocks if isinstance(function, relax.Function) else ())
        for binding in block.bindings
    )
    return any(
        name.startswith("relax.nn.conv2d") or (name == "relax.permute_dims" and _axes(call) == first(4))
        for call in bindings
        for name in [getattr(getattr(call, "op", None), "name", "")]
    )


def _axes(call: relax.Call) -> list[int] | None:
    """How a permutation permutes, where that is given."""
    return None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]


def last(rank: int) -> list[int]:
    """The permutation that moves the second of `rank` axes to the end."""
    return [0, *range(2, rank), 1]


def first(rank: int) -> list[int]:
    """The permutation that undoes `last`."""
    return [0, rank - 1, *range(1, rank - 1)]


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, lanes: int) -> None:
        super().__init__(module)
        self.lanes = lanes
        #: Variable -> its numbers with the channels last.
        self.twins: dict[relax.Var, relax.Expr] = {}
        #: Variable with a twin -> its numbers in the original order, where they have been asked for.
        self.originals: dict[relax.Var, relax.Expr] = {}
        #: Variable -> what it is always.
        self.constants: dict[relax.Var, np.ndarray] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Bind a twin where the operator has a rule and its arguments allow; else the value as it is."""
        variable, call = binding.var, binding.value
        # A value that is seen from outside keeps its order.
        if isinstance(call, tvm.ir.Call) and isinstance(variable, relax.DataflowVar):
            twin = self._twin_of(variable, call)
            if twin is not None:
                self.twins[variable] = self.builder_.emit(twin)
                return
            if self._asks_for_twin(call):
                binding = relax.VarBinding(variable, self.twins[call.args[0]])
        super().visit_var_binding_(binding)

    def _asks_for_twin(self, call: relax.Call) -> bool:
        """Whether `call` moves the channels of a value to the end, where that is known already."""
        if getattr(call.op, "name", "") != "relax.permute_dims":
            return False
        axes, arg = _axes(call), call.args[0]
        return isinstance(arg, relax.Var) and arg in self.twins and axes == last(len(axes or ()))

    def visit_dataflow_var_(self, variable: relax.Var) -> relax.Expr:
        """The value in its original order."""
        if variable not in self.twins:
            return super().visit_dataflow_var_(variable)
        if variable not in self.originals:
            twin = self.twins[variable]
            self.originals[variable] = self._moved(twin, first(len(_shape(twin))))
        return self.originals[variable]

    def _twin_of(self, variable: relax.Var, call: relax.Call) -> relax.Expr | None:
        """What the twin of `variable` is, where `call` has one."""
        name = getattr(call.op, "name", None)
        if not _is_static(call) or not call.args:
            return None
        if name == "relax.concat":
            return self._concat(call)
        if not _is_static(call.args[0]):
            return None
        if name in _RESHAPES:
            return self._reshape(variable, call)
        if name == "relax.permute_dims":
            return self._permute(call)
        if name == "relax.nn.conv2d":
            return self._conv2d(call)
        if name == "relax.nn.conv2d_transpose":
            return self._conv2d_transpose(call)
        if name == "relax.strided_slice":
            return self._slice(call)
        if name == "relax.image.resize2d":
            return self._resize(call)
        if name in _POOLS:
            return self._pool(call, _POOLS[name])
        if name in _REDUCTIONS:
            return self._reduce(call)
        if name in _ELEMENTWISE:
            return self._elementwise(call)
        return None

    def _elementwise(self, call: relax.Call) -> relax.Expr | None:
        shape = _shape(call)
        if not any(
            arg in self.twins and _shape(arg) == shape for arg in call.args if isinstance(arg, relax.Var)
        ):
            return None
        args = [self._follow(arg, len(shape)) if _is_static(arg) else arg for arg in call.args]
        return relax.Call(call.op, args, call.attrs)

    def _follow(self, arg: relax.Expr, rank: int) -> relax.Expr:
        """`arg`, to be broadcast to a value of `rank` axes, with those axes moved alike."""
        shape = _shape(arg)
        constant = self._constant(arg)
        if math.prod(shape) == 1 and len(shape) <= 1:
            return self.visit_expr(arg)
        whole = [1] * (rank - len(shape)) + shape
        if constant is not None:
            return relax.const(np.ascontiguousarray(constant.reshape(whole).transpose(last(rank))))
        if arg in self.twins and len(shape) == rank:
            return self.twins[arg]
        value = self.visit_expr(arg)
        if len(shape) < rank:
            value = self.builder_.emit(relax.op.reshape(value, whole))
        moved = self._moved(value, last(rank))
        if len(shape) == rank and isinstance(arg, relax.DataflowVar):
            self.originals[arg], self.twins[arg] = value, moved
        return moved

    def _reshape(self, variable: relax.Var, call: relax.Call) -> relax.Expr | None:
        """One that leaves batch and channels as they are."""
        arg, shape = call.args[0], _shape(call)
        constant = self._constant(arg)
        if constant is not None:
            self.constants[variable] = constant.reshape(shape)
            return None
        if not isinstance(arg, relax.Var) or arg not in self.twins:
            return None
        if len(shape) < 3 or _shape(arg)[:2] != shape[:2]:
            return None
        return relax.op.reshape(self.twins[arg], [shape[0], *shape[2:], shape[1]])

    def _permute(self, call: relax.Call) -> relax.Expr | None:
        """One whose result's twin is its argument, or its argument's twin with the axes permuted otherwise."""
        arg, rank = call.args[0], len(_shape(call))
        axes = _axes(call)
        if axes is None or rank < 3:
            return None
        if axes == first(rank):
            return self.visit_expr(arg)
        if not isinstance(arg, relax.Var) or arg not in self.twins or axes == last(rank):
            return None
        return relax.op.permute_dims(self.twins[arg], [first(rank)[axes[axis]] for axis in last(rank)])

    def _conv2d(self, call: relax.Call) -> relax.Expr | None:
        x, w = call.args
        attrs, shape, out = call.attrs, _shape(x), _shape(call)
        weight = self._constant(w)
        plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "OIHW" and attrs.out_layout == "NCHW"
        groups = int(attrs.groups)
        if weight is None or not plain or _dtype(x) != "float32" or 0 in out or 0 in shape:
            return None
        if groups != 1 and not groups == weight.shape[0] == shape[1]:
            return None
        top, left, bottom, right = (int(p) for p in attrs.padding)
        window = Window(
            kernel=_pair(weight.shape[2:]),
            strides=_pair(attrs.strides),
            dilations=_pair(attrs.dilation),
            padding=(top, left, bottom, right),
        )
        if groups != 1:
            return conv2d_by_channel(self.builder_, self._follow(x, 4), weight, window)
        if weight.shape[1] < self.lanes and x not in self.twins:
            return conv2d(self.builder_, self.visit_expr(x), weight, window, self.lanes, channels_first=True)
        return conv2d(self.builder_, self._follow(x, 4), weight, window, self.lanes)

    def _conv2d_transpose(self, call: relax.Call) -> relax.Expr | None:
        x, w = call.args
        attrs, shape, out = call.attrs, _shape(x), _shape(call)
        weight = self._constant(w)
        plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "IOHW" and attrs.out_layout == "NCHW"
        dense = int(attrs.groups) == 1 and all(int(d) == 1 for d in attrs.dilation)
        if weight is None or not (plain and dense) or _dtype(x) != "float32":
            return None
        if 0 in out or 0 in shape:
            return None
        return conv2d_transpose(
            self.builder_,
            self._follow(x, 4),
            weight,
            _pair(attrs.strides),
            _pair(attrs.padding[:2]),
            _pair(out[2:]),
            self.lanes,
        )

    def _pool(self, call: relax.Call, pool: Callable[..., relax.Expr]) -> relax.Expr | None:
        x, attrs = call.args[0], call.attrs
        if x not in self.twins or attrs.layout != "NCHW" or attrs.out_layout != "NCHW":
            return None
        return pool(
            self.twins[x],
            attrs.pool_size,
            attrs.strides,
            attrs.padding,
            attrs.dilation,
            attrs.ceil_mode,
            attrs.count_include_pad,
            "NHWC",
        )

    def _reduce(self, call: relax.Call) -> relax.Expr | None:
        """Over axes of the image alone, which are kept."""
        x, attrs = call.args[0], call.attrs
        if not isinstance(x, relax.Var) or x not in self.twins or attrs.axis is None or not attrs.keepdims:
            return None
        rank = len(_shape(x))
        axes = [int(axis) % rank for axis in attrs.axis]
        if {0, 1} & set(axes):
            return None
        reduce = {"relax.mean": relax.op.mean, "relax.sum": relax.op.sum, "relax.max": relax.op.max}
        return reduce.get(call.op.name, relax.op.min)(self.twins[x], [axis - 1 for axis in axes], True)

    def _concat(self, call: relax.Call) -> relax.Expr | None:
        """One of values that all have twins."""
        parts, rank = call.args[0], len(_shape(call))
        fields = list(parts.fields) if isinstance(parts, relax.Tuple) else []
        if not fields or not all(isinstance(x, relax.Var) and x in self.twins for x in fields):
            return None
        axis = last(rank).index(int(call.attrs.axis) % rank)
        return relax.op.concat([self.twins[x] for x in fields], axis)

    def _slice(self, call: relax.Call) -> relax.Expr | None:
        x, axes, *rest = call.args
        if x not in self.twins:
            return None
        rank = len(_shape(x))
        moved = [tirx.IntImm(axis.ty, last(rank).index(int(axis) % rank)) for axis in axes.fields]
        return relax.Call(call.op, [self.twins[x], relax.Tuple(moved), *rest], call.attrs)

    def _resize(self, call: relax.Call) -> relax.Expr | None:
        x, size = call.args
        attrs = call.attrs
        if x not in self.twins or attrs.layout != "NCHW" or any(float(part) for part in attrs.roi):
            return None
        return relax.op.image.resize2d(
            self.twins[x],
            size,
            None,
            "NHWC",
            attrs.method,
            attrs.coordinate_transformation_mode,
            attrs.rounding_method,
            attrs.cubic_alpha,
            attrs.cubic_exclude,
            attrs.extrapolation_value,
        )

    def _moved(self, value: relax.Expr, axes: Sequence[int]) -> relax.Expr:
        """`value` with its axes permuted, as a view where that moves no number."""
        shape = _shape(value)
        moving = [axis for axis in axes if shape[axis] > 1]
        if moving == sorted(moving):
            return self.builder_.emit(relax.op.reshape(value, [shape[axis] for axis in axes]))
        return self.builder_.emit(relax.op.permute_dims(value, list(axes)))

    def _constant(self, value: relax.Expr) -> np.ndarray | None:
        if isinstance(value, tvm.ir.GenericConst):
            array: np.ndarray = value.value.numpy()
            return array
        return self.constants.get(value) if isinstance(value, relax.Var) else None


def _is_static(value: relax.Expr) -> bool:
    """Whether `value` is a tensor of static shape."""
    shape = getattr(getattr(value, "ty", None), "shape", None)
    return isinstance(shape, relax.ShapeExpr) and all(isinstance(dim, tirx.IntImm) for dim in shape)


def _shape(value: relax.Expr) -> list[int]:
    return [int(dim) for dim in value.ty.shape]


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    height, width = (int(number) for number in numbers)
    return height, width


def _dtype(value: relax.Expr) -> str:
    return str(value.ty.dtype.dtype)
