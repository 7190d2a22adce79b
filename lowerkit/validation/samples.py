"""Samples from .npz files, and synthetic ones where there are none.

One array per graph input, by the input's name. For an input of shape [b, ...], N samples are an array
of shape [N * b, ...] (cut into N consecutive runs) or [N, b, ...]; all arrays agree on N.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import onnx_ir as ir

from lowerkit.artifact import TensorSpec, specs
from lowerkit.errors import DataError

#: What numpy and zipfile raise on files that are not, or no longer, what they claim to be.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


class Samples(Sequence[Mapping[str, np.ndarray]]):
    """N samples: input name -> array of the input's shape. Slices of one array per input, never copied."""

    def __init__(self, arrays: Mapping[str, np.ndarray], count: int) -> None:
        """`arrays` have shape [count, *input shape]."""
        self._arrays, self._count = dict(arrays), count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, np.ndarray] | Samples:
        if isinstance(index, slice):
            chosen = range(self._count)[index]
            return Samples({name: array[index] for name, array in self._arrays.items()}, len(chosen))
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return {name: array[index] for name, array in self._arrays.items()}


def read_samples(path: str | Path, inputs: Sequence[TensorSpec]) -> Samples:
    """The samples in an .npz file for a graph with `inputs`.

    Dtypes must be those of the inputs, or narrower ones of the same kind (int32 for int64, float16 for
    float32), which convert without loss.

    Raises:
        DataError: not an .npz, damaged, missing or unknown names, wrong dtypes or shapes, NaN, no samples.
    """
    arrays = _read_npz(Path(path))
    expected, found = [spec.name for spec in inputs], sorted(arrays)
    both = f"expected {_names(expected)}, found {_names(found)}"
    if missing := [name for name in expected if name not in arrays]:
        raise DataError(f"{path} lacks input '{missing[0]}': {both}")
    if extra := [name for name in found if name not in expected]:
        raise DataError(f"{path} holds '{extra[0]}', which is no input: {both}")
    stacked = {spec.name: _stack(_convert(arrays[spec.name], spec, path), spec, path) for spec in inputs}
    counts = {name: len(array) for name, array in stacked.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
        raise DataError(f"{path}: the inputs disagree on the number of samples: {listed}")
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise DataError(f"{path} holds no samples")
    return Samples(stacked, count)


def read_labels(path: str | Path) -> np.ndarray:
    """Class labels from an .npz with exactly one integer array, `labels`: flattened, int64, row by row.

    Raises DataError.
    """
    arrays = _read_npz(Path(path))
    if set(arrays) != {"labels"}:
        raise DataError(f"{path} must hold exactly one array, 'labels'; found {_names(sorted(arrays))}")
    labels = arrays["labels"]
    if labels.dtype.kind not in "iu":
        hint = "save class indices as integers"
        raise DataError(f"{path}: 'labels' is {labels.dtype}, not an integer array", hint=hint)
    if labels.size == 0 or labels.min() < 0 or labels.max() > np.iinfo(np.int64).max:
        what = "is empty" if labels.size == 0 else "holds values that are no class index"
        raise DataError(f"{path}: 'labels' {what}")
    return labels.astype(np.int64).ravel()


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz; unlike `numpy.savez` under any name, `file` too. Raises DataError."""
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        hint = "write it with numpy.savez(path, name=array, ...)"
        raise DataError(f"{path} is not an .npz file, or is cut off", hint=hint)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise DataError(f"cannot read {path}: {reason}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: '{name}' is not a numpy array")
    return arrays


def _convert(array: np.ndarray, spec: TensorSpec, path: str | Path) -> np.ndarray:
    wanted = np.dtype(spec.dtype)
    if array.dtype != wanted:
        kinds = {"i": "integer", "u": "integer", "f": "float"}
        kind = kinds.get(array.dtype.kind)
        if kind is None or kind != kinds.get(wanted.kind) or not np.can_cast(array.dtype, wanted, "safe"):
            hint = f"convert it with array.astype(numpy.{wanted.name}) if that is what you mean"
            raise DataError(f"{path}: '{spec.name}' is {array.dtype}, the input is {wanted}", hint=hint)
        array = array.astype(wanted)
    if array.dtype.kind == "f" and (bad := int(np.isnan(array).sum())):
        raise DataError(f"{path}: '{spec.name}' holds {bad} NaN values of {array.size}")
    return array


def _stack(array: np.ndarray, spec: TensorSpec, path: str | Path) -> np.ndarray:
    """`array` as [N, *spec.shape]."""
    shape = tuple(spec.shape)
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return array
    if array.shape == shape:
        return array[None]
    if array.ndim == len(shape) > 0 and array.shape[1:] == shape[1:] and shape[0] > 0:
        if array.shape[0] % shape[0] == 0:
            return array.reshape(-1, *shape)
        raise DataError(
            f"{path}: '{spec.name}' has {array.shape[0]} rows, not a multiple of the input's {shape[0]}"
        )
    rest = ", ".join(map(str, shape[1:]))
    runs = f"[N*{shape[0]}{', ' if rest else ''}{rest}] or " if shape else ""
    whole = ", ".join(["N", *map(str, shape)])
    raise DataError(f"{path}: '{spec.name}' has shape {list(array.shape)}; it takes {runs}[{whole}]")


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def synthetic_samples(model: ir.Model, count: int, seed: int) -> Samples:
    """Made-up inputs that a model can run on; equal arguments give equal samples.

    A rough stand-in for data. Floats are standard normal, which is like normalised images and unlike
    most else. Integers that index a constant table by Gather are uniform over its rows. Inputs called
    a mask are 1 up to a random length of at least half of the last axis, then 0. Bools are fair coins,
    8-bit integers are uniform over their range, and other integers are 0 or 1.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for value, spec in zip(model.graph.inputs, specs(list(model.graph.inputs)), strict=True):
        drawn = _draw(rng, value, (count, *spec.shape), np.dtype(spec.dtype))
        arrays[spec.name] = drawn.astype(spec.dtype)
    return Samples(arrays, count)


def _draw(rng: np.random.Generator, value: ir.Value, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    rows = _table_rows(value)
    if rows is not None and dtype.kind in "iu":
        return rng.integers(0, rows, shape)
    if "mask" in (value.name or "").lower():
        length = shape[-1] if len(shape) > 1 else 1
        valid = rng.integers((length + 1) // 2, length + 1, (*shape[:-1], 1))
        return (np.arange(length) < valid).reshape(shape)
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        low, high = (bounds.min, bounds.max + 1) if dtype.itemsize == 1 else (0, 2)
        return rng.integers(low, high, shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape)
    return rng.standard_normal(shape)


#: Operators that pass indices on unchanged.
_FORWARDS = frozenset(
    {"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"}
)


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest table that `value` indexes by Gather, or None."""
    found: list[int] = []
    for node, position in value.uses():
        if node.op_type == "Gather" and position == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            dim = table.shape[axis] if table is not None and table.shape is not None else None
            if isinstance(dim, int):
                found.append(dim)
        elif node.op_type in _FORWARDS and position == 0:
            rows = _table_rows(node.outputs[0])
            if rows is not None:
                found.append(rows)
    return min(found, default=None)
