"""Runs a compiled model with numpy and the `apache-tvm-ffi` wheel alone; also an artifact's `run.py`:

    python OUT/run.py IN.npz OUT.npz

This file is copied into the artifact as it is, so it imports nothing of lowerkit that it cannot do without.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


LIBRARY, RUNTIME, METADATA = "model.so", "libtvm_runtime.so", "runtime.json"
#: Generated code assumes buffers of this alignment, in bytes.
ALIGNMENT = 64
_POOL_CREATION = threading.Lock()


class CpuRunner:
    """A compiled model. Input name -> array in, output name -> array out; calls are serialised.

    Args:
        directory: where `model.so`, `runtime.json` and TVM's runtime library are.
        threads: threads to compute with; 0 for every processor this process may use.

    Raises:
        ArtifactError: files are missing or damaged.
        ToolError: this machine, or the installed `apache-tvm-ffi`, cannot run them.
    """

    def __init__(self, directory: str | Path, threads: int = 0) -> None:
        directory = Path(directory)
        try:
            self.metadata: dict[str, Any] = json.loads((directory / METADATA).read_bytes())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {directory / METADATA}: {error}") from None
        _check_machine(self.metadata)
        if not isinstance(threads, int) or threads < 0:
            raise DataError(f"threads must be 0 or a positive number, not {threads!r}")
        self.threads = threads or _usable_processors()
        # TVM keeps its thread pool thread-locally and sizes it when the thread first computes. One thread
        # of our own therefore gives each runner its own pool, whatever the caller's threads do.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lowerkit")
        self._thread.submit(self._load, directory).result()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises DataError when the inputs do not fit. The outputs own their memory."""
        return self._thread.submit(self._run, _check_inputs(inputs, self.metadata["inputs"])).result()

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The computation alone, on inputs that are in place, its outputs left where they are: for timing."""
        arrays = [self._tensor(_aligned(array)) for array in _check_inputs(inputs, self.metadata["inputs"])]
        return lambda: self._thread.submit(self._main, *arrays).result()

    def _load(self, directory: Path) -> None:
        import tvm_ffi

        _load_runtime(directory, self.metadata["tvm"])
        _size_thread_pool(self.threads)
        library = directory / LIBRARY
        if not library.is_file():
            raise ArtifactError(f"{library} is missing", hint="the artifact is incomplete; compile again")
        # By a path of its own: the loader takes an equal path for the library that it has loaded already,
        # even when an artifact was compiled again in its place.
        with tempfile.TemporaryDirectory(prefix="lowerkit-") as unique:
            link = Path(unique) / LIBRARY
            link.symlink_to(library.resolve())
            self._vm = tvm_ffi.load_module(str(link))["vm_load_executable"]()
        cpu, pooled_allocator = 1, 2
        self._vm["vm_initialization"](cpu, 0, pooled_allocator)
        self._main = self._vm["main"]
        self._tensor = tvm_ffi.from_dlpack

    def _run(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        result = self._main(*[self._tensor(_aligned(array)) for array in arrays])
        names = [spec["name"] for spec in self.metadata["outputs"]]
        tensors = [result] if len(names) == 1 else list(result)
        return {name: np.from_dlpack(t).copy() for name, t in zip(names, tensors, strict=True)}


def _check_inputs(inputs: Mapping[str, np.ndarray], specs: list[dict[str, Any]]) -> list[np.ndarray]:
    names = [spec["name"] for spec in specs]
    for what, wrong in (("is missing", set(names) - set(inputs)), ("is unknown", set(inputs) - set(names))):
        if wrong:
            raise DataError(f"input '{min(wrong)}' {what}", hint=f"inputs: {', '.join(names) or 'none'}")
    arrays = []
    for spec in specs:
        array = np.asarray(inputs[spec["name"]])
        if array.dtype.name != spec["dtype"] or not array.dtype.isnative:
            raise DataError(f"input '{spec['name']}' must be {spec['dtype']}, not {array.dtype}")
        if list(array.shape) != spec["shape"]:
            raise DataError(
                f"input '{spec['name']}' must have shape {spec['shape']}, not {list(array.shape)}"
            )
        arrays.append(array)
    return arrays


def _aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy: C-contiguous, at an address that is a multiple of ALIGNMENT."""
    aligned = array.ctypes.data % ALIGNMENT == 0
    if array.size and array.flags.c_contiguous and array.flags.writeable and aligned:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def _check_machine(metadata: Mapping[str, Any]) -> None:
    if platform.machine() != metadata["machine"]:
        raise ToolError(
            f"the artifact is for {metadata['machine']}, and this machine is {platform.machine()}"
        )
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux: nothing to compare with
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}
    if lacking := [flag for flag in metadata["flags"] if flag not in flags]:
        raise ToolError(
            f"the artifact is for {metadata['cpu']}, and this processor lacks {', '.join(lacking)}",
            hint="compile with an older `cpu` option",
        )


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load_runtime(directory: Path, version: str) -> None:
    """Load TVM's runtime library once per process: a second copy would register everything twice."""
    import tvm_ffi

    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
        return
    # Where the tvm wheel of the same version is installed its own file is the one to load, so that a later
    # `import tvm` finds it loaded.
    library = directory / RUNTIME
    spec = importlib.util.find_spec("tvm")
    if spec is not None and spec.origin is not None and _installed("apache-tvm") == version:
        installed = Path(spec.origin).parent / "lib" / RUNTIME
        library = installed if installed.is_file() else library
    try:
        ctypes.CDLL(str(library.resolve()), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ToolError(f"cannot load {library}: {error}", hint="pip install apache-tvm-ffi") from None


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size_thread_pool(threads: int) -> None:
    """Make the calling thread's TVM thread pool, with `threads` threads, the calling one included."""
    import tvm_ffi

    # Workers pinned to cores collide as soon as two processes run.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    # Idle workers spin before they sleep: about a millisecond, where TVM's default is hundreds.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")
    with _POOL_CREATION:
        # The size of a new pool, and read again at every parallel loop: with 1 all of them run serially. So
        # it only ever grows, and the pool is told how many of its threads to use.
        largest = max(threads, int(os.environ.get("TVM_NUM_THREADS", "0")))
        os.environ["TVM_NUM_THREADS"] = str(largest)
        any_core = 1
        tvm_ffi.get_global_func("runtime.config_threadpool")(any_core, threads)


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
