"""Runs a compiled model with numpy alone; also an artifact's `run.py`:

    python OUT/run.py IN.npz OUT.npz

This file is copied into the artifact as it is, so it imports nothing of lowerkit that it cannot do without.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import platform
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from lowerkit.errors import ArtifactError, DataError, ToolError
else:
    try:
        from lowerkit.errors import ArtifactError, DataError, ToolError
    except ImportError:  # alone in an artifact

        class _Refusal(Exception):
            def __init__(self, reason: str, *, hint: str | None = None) -> None:
                super().__init__(reason if hint is None else f"{reason}. {hint[0].upper()}{hint[1:]}")

        class ArtifactError(_Refusal):
            pass

        class DataError(_Refusal):
            pass

        class ToolError(_Refusal):
            pass


LIBRARY, METADATA = "model.so", "runtime.json"
#: The library uses buffers as they are at addresses that are multiples of this, and copies others.
ALIGNMENT = 64
#: `lowerkit_status` of `lowerkit.h` that are not the artifact's fault.
_UNSUPPORTED = 1


class CpuRunner:
    """A compiled model. Input name -> array in, output name -> array out; calls are serialised.

    Args:
        directory: where `model.so` and `runtime.json` are.
        threads: threads to compute with, the caller's included; 0 for every processor this process may use.

    Raises:
        ArtifactError: files are missing or damaged.
        ToolError: this machine cannot run them.
    """

    def __init__(self, directory: str | Path, threads: int = 0) -> None:
        directory = Path(directory)
        try:
            self.metadata: dict[str, Any] = json.loads((directory / METADATA).read_bytes())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {directory / METADATA}: {error}") from None
        if platform.machine() != self.metadata["machine"]:
            raise ToolError(
                f"the artifact is for {self.metadata['machine']}, and this machine is {platform.machine()}"
            )
        if not isinstance(threads, int) or threads < 0:
            raise DataError(f"threads must be 0 or a positive number, not {threads!r}")
        self._inputs = {spec["name"]: _Tensor(spec) for spec in self.metadata["inputs"]}
        self._outputs = [_Tensor(spec) for spec in self.metadata["outputs"]]
        self._library = library = _load(directory / LIBRARY)
        library.lowerkit_error.restype = library.lowerkit_step_name.restype = ctypes.c_char_p
        self._call = library.lowerkit_run
        self._model = model = ctypes.c_void_p()
        if status := library.lowerkit_open(ctypes.byref(model), ctypes.c_int(threads)):
            raise (ToolError if status == _UNSUPPORTED else ArtifactError)(self._error())
        weakref.finalize(self, _close, library, model)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises DataError when the inputs do not fit. The outputs own their memory."""
        arrays = self._check(inputs)
        results = [np.empty(tensor.shape, tensor.dtype) for tensor in self._outputs]
        self._run(_pointers(arrays), _pointers(results))
        return {tensor.name: result for tensor, result in zip(self._outputs, results, strict=True)}

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The computation alone, on inputs that are in place, its outputs left where they are: for timing."""
        arrays = [_aligned(array) for array in self._check(inputs)]
        results = [_aligned(np.zeros(tensor.shape, tensor.dtype)) for tensor in self._outputs]
        pointers = _pointers(arrays), _pointers(results)

        def run(keep: object = (arrays, results)) -> None:
            self._run(*pointers)

        return run

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
        """Run once: the name of each kernel, in order, and the seconds that it took."""
        arrays = [_aligned(array) for array in self._check(inputs)]
        results = [_aligned(np.zeros(tensor.shape, tensor.dtype)) for tensor in self._outputs]
        count = self._library.lowerkit_step_count()
        seconds = (ctypes.c_double * count)()
        if self._library.lowerkit_profile(self._model, _pointers(arrays), _pointers(results), seconds):
            raise DataError(self._error())
        names = [self._library.lowerkit_step_name(step).decode() for step in range(count)]
        return list(zip(names, seconds, strict=True))

    def _run(self, inputs: ctypes.Array[ctypes.c_void_p], outputs: ctypes.Array[ctypes.c_void_p]) -> None:
        if self._call(self._model, inputs, outputs):
            raise DataError(self._error())

    def _error(self) -> str:
        text: bytes = self._library.lowerkit_error()
        return text.decode(errors="replace")

    def _check(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The inputs in order, C-contiguous."""
        if inputs.keys() != self._inputs.keys():
            names = ", ".join(self._inputs) or "none"
            for what, wrong in (
                ("is missing", self._inputs.keys() - inputs.keys()),
                ("is unknown", inputs.keys() - self._inputs.keys()),
            ):
                if wrong:
                    raise DataError(f"input '{min(wrong)}' {what}", hint=f"inputs: {names}")
        return [tensor.check(inputs[name]) for name, tensor in self._inputs.items()]


class _Tensor:
    """Name, dtype and shape of an input or output."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.name: str = spec["name"]
        self.dtype = np.dtype(spec["dtype"])
        self.shape = tuple(spec["shape"])

    def check(self, value: np.ndarray) -> np.ndarray:
        """`value`, C-contiguous. Raises DataError where it is of another type or shape."""
        array = np.asarray(value)
        if array.dtype != self.dtype:
            raise DataError(f"input '{self.name}' must be {self.dtype}, not {array.dtype}")
        if array.shape != self.shape:
            raise DataError(
                f"input '{self.name}' must have shape {list(self.shape)}, not {list(array.shape)}"
            )
        return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(self.shape)


def _load(path: Path) -> ctypes.CDLL:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", hint="the artifact is incomplete; compile again")
    # By a path of its own: the loader takes an equal path for the library that it has loaded already, even when an
    # artifact was compiled again in its place.
    with tempfile.TemporaryDirectory(prefix="lowerkit-") as unique:
        link = Path(unique) / LIBRARY
        link.symlink_to(path.resolve())
        try:
            library = ctypes.CDLL(str(link))
        except OSError as error:
            raise ArtifactError(f"cannot load {path}: {error}", hint="compile again") from None
    if not hasattr(library, "lowerkit_open"):
        raise ArtifactError(f"{path} is of an older lowerkit", hint="compile again")
    return library


def _close(library: ctypes.CDLL, model: ctypes.c_void_p) -> None:
    library.lowerkit_close(model)
    _ctypes.dlclose(library._handle)


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*map(_address, arrays))


def _address(array: np.ndarray) -> int:
    try:  # several times faster than numpy's own ways
        return ctypes.addressof(ctypes.c_char.from_buffer(cast(Any, array)))
    except (TypeError, ValueError):  # read-only, or empty
        return array.ctypes.data


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that is a multiple of ALIGNMENT."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # np.savez takes names as keyword arguments, and an output may be called `file`.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def main(arguments: list[str]) -> int:
    """`run.py IN.npz OUT.npz`: one array per input in, one per output out. Exit code 2 on a refusal."""
    if len(arguments) != 2:
        print("usage: python run.py IN.npz OUT.npz", file=sys.stderr)
        return 2
    try:
        with np.load(arguments[0], allow_pickle=False) as archive:
            inputs = {name: archive[name] for name in archive.files}
        outputs = CpuRunner(Path(__file__).resolve().parent)(inputs)
        _save(Path(arguments[1]), outputs)
    except (ArtifactError, DataError, ToolError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
