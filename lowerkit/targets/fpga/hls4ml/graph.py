"""Designs as hls4ml graphs: each layer a `LowerkitKernel`, each value a variable of its port's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hls4ml.model.graph import ModelGraph
from hls4ml.utils.config import create_config

from lowerkit.artifact import Artifact
from lowerkit.errors import ArtifactError, UnsupportedError
from lowerkit.targets.fpga.design import Design
from lowerkit.targets.fpga.hls4ml.layers import LowerkitKernel, precision_of, sizes
from lowerkit.targets.fpga.project import variable
from lowerkit.targets.fpga.target import FpgaTarget


def design_in(directory: Path) -> Design:
    """The design of an artifact, with layers of their own where it has a unit that they share: the codes are the same.

    Raises ArtifactError for one of another target.
    """
    artifact = Artifact.load(directory)
    if artifact.target != FpgaTarget.name:
        raise ArtifactError(f"{directory} was compiled for the target {artifact.target}, not for fpga")
    return FpgaTarget().design(artifact.model(), {**artifact.plan.options, "shared_linear": False})


def model_of(design: Design, output_dir: Path, backend: str, settings: Mapping[str, Any]) -> Any:
    """See the package's `open_design`."""
    if shared := next((layer for layer in design.layers if layer.job is not None), None):
        raise UnsupportedError(
            "several layers share its kernel, and in hls4ml's dataflow each has its own",
            node=f"node '{shared.node}'",
            hint="set shared_linear to false",
        )
    inputs = {port.value: f"x{i}_{variable(port.value)}" for i, port in enumerate(design.inputs)}
    layers: list[dict[str, Any]] = [
        {"name": inputs[port.value], "class_name": "InputLayer", "input_shape": sizes([port.shape])[0]}
        for port in design.inputs
    ]
    #: The variable of each value that is stored.
    variables = dict(inputs)
    for layer in design.layers:
        ports = [design.values[value] for value in layer.writes]
        # An output of the only layer's name is what hls4ml's own layers have.
        names = [layer.name] if len(ports) == 1 else [f"{layer.name}_{i}" for i in range(len(ports))]
        layers.append(
            {
                "name": layer.name,
                "class_name": LowerkitKernel.__name__,
                "inputs": [variables[design.stored(value)] for value in layer.reads],
                "outputs": names,
                "kernel": layer.kernel,
                "shapes": sizes([port.shape for port in ports]),
                "formats": [port.format for port in ports],
            }
        )
        variables.update(zip(layer.writes, names, strict=True))
    config = create_config(output_dir=str(output_dir), backend=backend, **settings)
    config["HLSConfig"] = {
        # Layers run beside each other, and loops as the kernels have them: in a pipeline they would be unrolled.
        "Model": {
            "Precision": {"default": "fixed<16,6>"},
            "ReuseFactor": 1,
            "Strategy": "Latency",
            "PipelineStyle": "dataflow",
        },
        "LayerName": {
            inputs[port.value]: {"Precision": {"result": str(precision_of(port.format))}}
            for port in design.inputs
        },
    }
    return ModelGraph.from_layer_list(config, layers, list(inputs.values()), _outputs(design))


def _outputs(design: Design) -> list[str]:
    """The layers whose results are the design's outputs, in order."""
    written = {value: layer for layer in design.layers for value in layer.writes}
    found: list[str] = []
    for port in design.outputs:
        layer = written.get(design.stored(port.value))
        if layer is None or layer.name in found or len(layer.writes) > 1:
            reason = (
                "is an input" if layer is None else "is another one's twin" if layer.name in found
                else f"is one of several of layer {layer.name}"
            )  # fmt: skip
            raise UnsupportedError(
                f"output '{port.value}' {reason}, which hls4ml's graphs cannot say",
                hint="use the project in hls/ instead",
            )
        found.append(layer.name)
    return found
