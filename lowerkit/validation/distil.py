"""Made-up inputs that a network with BatchNormalization takes for data: with the statistics that it was trained on.

ZeroQ (Cai et al., CVPR 2020, section 3.1) starts from noise and descends the distance between the mean and variance
of what each BatchNormalization sees and the mean and variance that it holds. Here the inputs are a family with few
parameters instead of free pixels, and the distance is lessened by a search that needs no gradients: an image is
mean + deviation * (noise whose spectrum falls with a power of the frequency), the mean and the deviation per channel.
What that family lacks of photographs (edges, objects) the samples lack too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from lowerkit.graph.fusions.algebra import constant
from lowerkit.graph.shapes import static_shape
from lowerkit.reference import Reference

#: Images that the search looks at, rounds of it over all parameters, and the widths of its first steps.
_IMAGES, _ROUNDS = 1, 8
_STEPS = {"mean": 0.5, "log_deviation": 0.7, "smoothness": 0.5}


def distilled_samples(model: ir.Model, count: int, seed: int) -> list[Mapping[str, np.ndarray]] | None:
    """`count` samples for `model`, as it was trained; None where it has not one image as input, or no statistics.

    An image is a float32 input of shape [N, C, H, W]. Equal arguments give equal samples.
    """
    statistics = _statistics(model)
    inputs = list(model.graph.inputs)
    shape = static_shape(inputs[0]) if len(inputs) == 1 else None
    if not statistics or shape is None or len(shape) != 4 or inputs[0].dtype != ir.DataType.FLOAT:
        return None
    name, channels = inputs[0].name or "", shape[1]
    noise = np.random.default_rng(seed).standard_normal((max(count, _IMAGES), *shape))
    reference = Reference(model, taps=list(statistics))

    def distance(parameters: np.ndarray) -> float:
        runs = [reference({name: _image(noise[i], parameters)}) for i in range(_IMAGES)]
        return sum(
            _mismatch(np.stack([run[value] for run in runs]), *found) for value, found in statistics.items()
        )

    steps = [_STEPS["mean"]] * channels + [_STEPS["log_deviation"]] * channels + [_STEPS["smoothness"]]
    best = _descend(distance, np.zeros(2 * channels + 1), np.array(steps))
    return [{name: _image(noise[i], best)} for i in range(count)]


def _statistics(model: ir.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(mean, variance) by channel, of the input of every BatchNormalization over images."""
    found = {}
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "BatchNormalization" and node.domain == "" else None
        mean, variance = (constant(x) for x in node.inputs[3:5]) if value is not None else (None, None)
        if value is None or value.name is None or mean is None or variance is None:
            continue
        if len(static_shape(value) or ()) == 4:
            found[value.name] = mean.astype(np.float64), variance.astype(np.float64)
    return found


def _image(noise: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Noise [N, C, H, W] with mean, logarithm of the deviation, and exponent of the spectrum, in float32."""
    channels = noise.shape[1]
    mean, deviation = parameters[:channels], np.exp(parameters[channels : 2 * channels])
    rows, columns = np.fft.fftfreq(noise.shape[2])[:, None], np.fft.rfftfreq(noise.shape[3])
    frequency = np.maximum(np.hypot(rows, columns), 1 / max(noise.shape[2:]))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * frequency ** -max(parameters[-1], 0.0), s=noise.shape[2:])
    smooth -= smooth.mean(axis=(2, 3), keepdims=True)
    smooth /= np.maximum(smooth.std(axis=(2, 3), keepdims=True), 1e-12)
    result: np.ndarray = smooth * deviation[:, None, None] + mean[:, None, None]
    return result.astype(np.float32)


def _mismatch(values: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """How far the channels' normal distributions are from those of training: their mean Kullback-Leibler divergence.

    `values` are [runs, N, C, H, W].
    """
    x = np.asarray(values, np.float64)
    found, spread = x.mean(axis=(0, 1, 3, 4)), x.var(axis=(0, 1, 3, 4))
    least = 1e-3 * variance.mean() + 1e-12  # of channels that are always 0
    ratio = (spread + least) / (variance + least)
    divergence = (ratio - 1 - np.log(ratio) + (found - mean) ** 2 / (variance + least)) / 2
    return float(divergence.mean())


def _descend(f: Callable[[np.ndarray], float], start: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Pattern search: one parameter after the other a step up or down; steps that help grow, others shrink."""
    best, least = start, f(start)
    steps = steps.copy()
    for _ in range(_ROUNDS):
        for i in range(len(start)):
            for sign in (1, -1):
                tried = best.copy()
                tried[i] += sign * steps[i]
                found = f(tried)
                if found < least:
                    best, least = tried, found
                    steps[i] *= 1.5
                    break
            else:
                steps[i] /= 2
    return best
