"""Who runs a model on the processor, and how: lowerkit and its peers, each at the precisions that it has.

A contender prepares a model once (a file or folder of its own) and opens that for a number of threads. All start from
the same graph with static shapes, `original.onnx`, and calibrate on the same samples where they calibrate. None spins
between calls, pins threads to processors, or copies its inputs on the way in if it can be told not to.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.models import BenchmarkModel

Sample = Mapping[str, np.ndarray]

ORIGINAL, SAMPLES, CASE = "original.onnx", "samples.npz", "case.json"
#: Samples that contenders calibrate with: the first ones.
CALIBRATION = 16


class LeftOut(Exception):
    """A contender cannot take part, and why."""


@dataclass(frozen=True)
class Case:
    """A model in a folder: `original.onnx`, `samples.npz`, `case.json`. Reading it imports nothing but numpy.

    Attributes:
        inputs, outputs: names, in the graph's order.
        encoder: kind, heads and width, for tools that are told what a transformer is; None for other models.
    """

    directory: Path
    inputs: Sequence[str]
    outputs: Sequence[str]
    encoder: tuple[str, int, int] | None

    @classmethod
    def write(cls, directory: Path, model: BenchmarkModel) -> Case:
        """Make the folder for a model."""
        from lowerkit import load
        from lowerkit.artifact import save_model, specs
        from lowerkit.validation.samples import read_samples

        directory.mkdir()
        original = load(model.path(), model.shapes)
        save_model(original, directory / ORIGINAL)
        samples = read_samples(model.write_samples(directory / SAMPLES), specs(list(original.graph.inputs)))
        inputs, outputs = (
            [v.name or "" for v in vs] for vs in (original.graph.inputs, original.graph.outputs)
        )
        np.savez(directory / SAMPLES, **{name: np.stack([s[name] for s in samples]) for name in inputs})
        facts = {"inputs": inputs, "outputs": outputs, "encoder": model.encoder}
        (directory / CASE).write_text(json.dumps(facts))
        return cls.read(directory)

    @classmethod
    def read(cls, directory: Path) -> Case:
        """The case in a folder."""
        return cls(directory, **json.loads((directory / CASE).read_text()))

    @property
    def original(self) -> Path:
        """The graph, float32, shapes static."""
        return self.directory / ORIGINAL

    def samples(self) -> list[Sample]:
        """All samples, as the model takes them."""
        with np.load(self.directory / SAMPLES, allow_pickle=False) as data:
            arrays = [data[name] for name in self.inputs]
        return [dict(zip(self.inputs, one, strict=True)) for one in zip(*arrays, strict=True)]

    def write_calibration(self, path: Path) -> Path:
        """Write the samples that contenders calibrate with; their file."""
        samples = self.samples()[:CALIBRATION]
        np.savez(path, **{name: np.stack([s[name] for s in samples]) for name in self.inputs})
        return path


@dataclass(frozen=True)
class Session:
    """A model that runs: outputs in the order of the graph's, and the precision that its products really have."""

    run: Callable[[Sample], Sequence[np.ndarray]]
    ran: str


@dataclass(frozen=True)
class Contender:
    """See the module.

    Attributes:
        precision: `fp32`, `bf16` or `int8`: asked of it, and compared with lowerkit's of the same name.
        prepare: writes what it runs to a path, `suffix` at its end; returns a remark. Raises LeftOut.
        open: that path, for a number of threads.
    """

    name: str
    precision: str
    package: str
    suffix: str
    prepare: Callable[[Case, Path], str]
    open: Callable[[Case, Path, int], Session]

    def path(self, case: Case) -> Path:
        """What it prepares and opens."""
        return case.directory / (self.name.replace(" ", "-") + self.suffix)

    @property
    def ours(self) -> bool:
        """Whether this is lowerkit."""
        return self.package == "lowerkit"

    def check_installed(self) -> None:
        """Raises LeftOut where the contender's package is not there."""
        if importlib.util.find_spec(self.package) is None:
            raise LeftOut(f"{self.package} is not installed")


# lowerkit.


def _compile(methods: Mapping[str, str]) -> Callable[[Case, Path], str]:
    def prepare(case: Case, path: Path) -> str:
        import lowerkit

        calibration = case.write_calibration(path.with_suffix(".npz"))
        options = {"cpu": "native"}  # peers look at the processor too
        try:
            lowerkit.compile(
                case.original, path, "cpu", calibration=calibration, methods=methods, options=options
            )
        except lowerkit.LowerkitError as error:
            raise LeftOut(str(error)) from error
        plan = lowerkit.Artifact.load(path).plan
        choices = Counter(choice.method for choice in plan.choices)
        return f"{plan.options['cpu']}; " + ", ".join(
            f"{count} {method}" for method, count in choices.items()
        )

    return prepare


def _open_artifact(precision: str) -> Callable[[Case, Path, int], Session]:
    def open_(case: Case, path: Path, threads: int) -> Session:
        from lowerkit.targets.cpu.runner import CpuRunner  # as deployed: it is also an artifact's `run.py`

        runner = CpuRunner(path, threads)
        names = list(case.outputs)

        def run(sample: Sample) -> Sequence[np.ndarray]:
            outputs = runner(sample)
            return [outputs[name] for name in names]

        return Session(run, precision)

    return open_


# onnxruntime.


def _original(case: Case, path: Path) -> str:
    path.write_bytes(case.original.read_bytes())
    return ""


def _fuse(case: Case, path: Path) -> str:
    """The optimiser for transformers, as a graph file; onnxruntime's own optimisations follow when it is opened."""
    from onnxruntime.transformers.optimizer import optimize_model

    if case.encoder is None:
        raise LeftOut("onnxruntime.transformers.optimizer is for transformers")
    kind, heads, size = case.encoder
    fused = optimize_model(
        str(case.original), model_type=kind, num_heads=heads, hidden_size=size, opt_level=0
    )
    found = {name: count for name, count in fused.get_fused_operator_statistics().items() if count}
    if not found:
        raise LeftOut("onnxruntime.transformers.optimizer fuses nothing")
    fused.save_model_to_file(str(path))
    return ", ".join(f"{count} {name}" for name, count in found.items())


def _quantize_dynamic(source: Callable[[Case, Path], str]) -> Callable[[Case, Path], str]:
    def prepare(case: Case, path: Path) -> str:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        unquantised, ready = path.with_suffix(".fp32.onnx"), path.with_suffix(".ready.onnx")
        source(case, unquantised)
        quant_pre_process(unquantised, ready, skip_symbolic_shape=True)  # shapes are static
        graph = onnx.load(ready)
        del graph.graph.value_info[:]  # it transposes weights, and would then find other shapes here
        # Without VNNI its kernels add pairs of products in int16, which saturates: a bit less prevents that.
        flags = Path("/proc/cpuinfo").read_text().split()
        narrow = "avx512_vnni" not in flags and "avx_vnni" not in flags
        quantize_dynamic(
            graph,
            path,
            per_channel=True,
            reduce_range=narrow,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return f"quantize_dynamic, per channel, {7 if narrow else 8} bits"

    return prepare


def _open_onnxruntime(precision: str) -> Callable[[Case, Path, int], Session]:
    def open_(case: Case, path: Path, threads: int) -> Session:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        names = list(case.outputs)
        return Session(lambda sample: session.run(names, dict(sample)), precision)

    return open_


# OpenVINO.


def _convert(case: Case, path: Path) -> str:
    import openvino as ov

    ov.save_model(ov.Core().read_model(case.original), path, compress_to_fp16=False)
    return ""


def _nncf(case: Case, path: Path) -> str:
    """Post-training quantisation with calibrated activations, as Intel recommends it for OpenVINO."""
    import openvino as ov

    if importlib.util.find_spec("nncf") is None:
        raise LeftOut("nncf is not installed")
    import nncf

    model = ov.Core().read_model(case.original)
    kind = nncf.ModelType.TRANSFORMER if case.encoder is not None else None
    samples = case.samples()[:CALIBRATION]
    quantised = nncf.quantize(model, nncf.Dataset(samples), model_type=kind, subset_size=len(samples))
    ov.save_model(quantised, path, compress_to_fp16=False)
    return f"nncf.quantize, {len(samples)} samples{', transformer' if kind else ''}"


def _open_openvino(precision: str) -> Callable[[Case, Path, int], Session]:
    def open_(case: Case, path: Path, threads: int) -> Session:
        import openvino as ov

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        compiled = ov.Core().compile_model(path, "CPU", config)
        request = compiled.create_infer_request()
        outputs = list(compiled.outputs)

        def run(sample: Sample) -> Sequence[np.ndarray]:
            found = request.infer(dict(sample), share_inputs=True, share_outputs=True)
            return [found[output] for output in outputs]

        return Session(run, _ran_openvino(compiled))

    return open_


def _ran_openvino(compiled: Any) -> str:
    """The types in which its products run, most first, and the hint that it settled on."""
    kinds = {"FullyConnected", "Convolution", "MatMul", "Deconvolution"}
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and str(facts["layerType"].value) in kinds:
            found[str(facts["runtimePrecision"].value)] += 1
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    products = ", ".join(f"{count} {name}" for name, count in found.most_common())
    return f"{products} (hint {hint})"


# IREE.


def _iree_compile(case: Case, path: Path) -> str:
    import iree.compiler.tools as tools
    from iree.compiler.tools.import_onnx import __main__ as importer

    imported = path.with_suffix(".mlir")
    try:
        importer.main(importer.parse_arguments([str(case.original), "-o", str(imported)]))
        tools.compile_file(
            str(imported),
            target_backends=["llvm-cpu"],
            input_type="onnx",
            output_file=str(path),
            extra_args=["--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3"],
        )
    except Exception as error:  # the importer raises whatever it meets
        lines = [line for line in str(error).splitlines() if "error:" in line] or [type(error).__name__]
        raise LeftOut(f"IREE cannot compile it: {lines[0].rpartition('error:')[2].strip()}") from error
    return ""


def _open_iree(case: Case, path: Path, threads: int) -> Session:
    import iree.runtime as rt

    rt.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = rt.Config("local-task")
    module = rt.VmModule.mmap(config.vm_instance, str(path))
    context = rt.SystemContext(vm_modules=[module], config=config)
    bound = context.modules[module.name]
    function = bound[next(n for n in module.function_names if not n.startswith("_") and "$" not in n)]

    def run(sample: Sample) -> Sequence[np.ndarray]:
        found = function(*(sample[name] for name in case.inputs))
        several = found if isinstance(found, (tuple, list)) else [found]
        return [np.asarray(array.to_host()) for array in several]

    return Session(run, "fp32")


def _openvino(name: str, prepare: Callable[[Case, Path], str], hint: str) -> Contender:
    return Contender(f"OpenVINO {name}", name, "openvino", ".xml", prepare, _open_openvino(hint))


def _ours(name: str, precision: str, **methods: str) -> Contender:
    run = _open_artifact(precision)
    return Contender(f"lowerkit {name}", precision, "lowerkit", "", _compile(methods), run)


def _onnxruntime(name: str, precision: str, prepare: Callable[[Case, Path], str]) -> Contender:
    return Contender(
        f"onnxruntime {name}", precision, "onnxruntime", ".onnx", prepare, _open_onnxruntime(precision)
    )


REFERENCE = "onnxruntime fp32"
#: Run only where they are named: activations quantised with calibrated ranges; and a compiler that takes its time.
OPTIONAL = ("lowerkit static int8", "IREE fp32")
CONTENDERS = {
    contender.name: contender
    for contender in (
        _ours("fp32", "fp32"),
        _ours("bf16", "bf16", linear="bf16"),
        _ours("int8", "int8", linear="int8"),
        _ours("static int8", "int8", linear="int8-static"),
        _onnxruntime("fp32", "fp32", _original),
        _onnxruntime("fused", "fp32", _fuse),
        _onnxruntime("int8", "int8", _quantize_dynamic(_original)),
        _onnxruntime("fused int8", "int8", _quantize_dynamic(_fuse)),
        _openvino("fp32", _convert, "f32"),
        _openvino("bf16", _convert, "bf16"),
        _openvino("int8", _nncf, "f32"),
        Contender("IREE fp32", "fp32", "iree", ".vmfb", _iree_compile, _open_iree),
    )
}
