"""Train the example models, export them to ONNX and write the data they are evaluated on.

    pip install -c constraints.txt -e '.[train]'
    python -m examples.train            # about ten minutes on two cores

Digits are scikit-learn's (1797 images of 8x8), split 75:25, stratified, with a fixed seed. Fashion-MNIST is
Debian's package; its own test set is the test set. Everything is seeded; other versions of torch, or another
processor, may round differently and give slightly different weights. Accuracies and checksums go to
examples/models/README.md.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from examples import networks
from examples.fetch import fetch

HERE = Path(__file__).parent
SEED = 7
CALIBRATION = 64
#: Images for calibration where intervals have to hold for what comes.
TRAINING = 1024


@dataclass(frozen=True)
class Split:
    """Images and labels for training and for testing."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digits() -> Split:
    """[n, 1, 8, 8] float32 in [0, 1]."""
    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    parts = train_test_split(images, data.target, test_size=0.25, random_state=SEED, stratify=data.target)
    return Split(*(torch.from_numpy(parts[i]) for i in (0, 2, 1, 3)))


def fashion() -> Split:
    """[n, 784] float32 in [0, 1]."""

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress(fetch(name).read_bytes()), np.uint8, offset=header)

    def images(name: str) -> Tensor:
        return torch.from_numpy(read(name, 16).reshape(-1, 784).astype(np.float32) / np.float32(255))

    def labels(name: str) -> Tensor:
        return torch.from_numpy(read(name, 8).astype(np.int64))

    return Split(
        images("fashion-train-images"),
        labels("fashion-train-labels"),
        images("fashion-test-images"),
        labels("fashion-test-labels"),
    )


def shifted(batch: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions."""
    padded = nn.functional.pad(batch, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2, len(batch)))
    rows = dy[:, None] + torch.arange(8)
    columns = dx[:, None] + torch.arange(8)
    index = torch.arange(len(batch))[:, None, None]
    return padded[index, 0, rows[:, :, None], columns[:, None, :]][:, None]


def fit(
    model: nn.Module,
    split: Split,
    epochs: int,
    batch: int,
    rate: float,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Train with AdamW and a one-cycle schedule; returns the test accuracy."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(split.train) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(split.train)), batch):
            images = split.train[index]
            logits = model(augment(images) if augment else images)
            loss = nn.functional.cross_entropy(logits, split.train_labels[index], label_smoothing=0.05)
            loss = loss + networks.excess(model)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    model.eval()
    return accuracy(model, split)


def accuracy(model: nn.Module, split: Split) -> float:
    """Fraction of test images classified rightly."""
    with torch.no_grad():
        return float((model(split.test).argmax(1) == split.test_labels).double().mean())


def export(model: nn.Module, name: str, example: Tensor, opset: int = 18, dynamo: bool = True) -> Path:
    """Write examples/models/`name`.onnx with input `image`, output `logits` and a symbolic batch."""
    path = HERE / "models" / f"{name}.onnx"
    batch = {"image": {0: torch.export.Dim("batch")}} if dynamo else None
    torch.onnx.export(
        model.eval(),
        (example[:2],),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        opset_version=opset,
        dynamo=dynamo,
        dynamic_shapes=batch,
        dynamic_axes=None if dynamo else {"image": {0: "batch"}, "logits": {0: "batch"}},
        external_data=False,
        verbose=False,
    )
    exported = onnx.load(path)
    # Exporters record source lines and module paths, which are of this machine.
    for item in (exported.graph, *exported.graph.node, *exported.graph.value_info, *exported.functions):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    path.write_bytes(exported.SerializeToString(deterministic=True))
    return path


def save(name: str, **arrays: Tensor) -> None:
    """Write examples/data/`name`.npz."""
    contents: dict[str, Any] = {key: tensor.numpy() for key, tensor in arrays.items()}
    np.savez_compressed(HERE / "data" / f"{name}.npz", **contents)


def main() -> None:
    """Train, export, save data, write the README."""
    torch.set_num_threads(2)
    rows: list[tuple[str, str, float, int, Path]] = []

    def train(name: str, what: str, make: Callable[[], nn.Module], split: Split, **how: object) -> nn.Module:
        torch.manual_seed(SEED)
        model = make()
        score = fit(model, split, **how)  # type: ignore[arg-type]
        rows.append((name, what, score, _parameters(model), export(model, name, split.test)))
        print(f"{name}: {score:.2%} of {len(split.test)}", flush=True)
        return model

    split = digits()
    save("digits_test", image=split.test)
    save("digits_test_labels", labels=split.test_labels)
    save("digits_calibration", image=split.train[:CALIBRATION])
    save("digits_training", image=split.train[:TRAINING])
    how = {"epochs": 150, "batch": 64, "rate": 3e-3, "augment": shifted}
    what = "ViT: 2x2 patches, 16 tokens of 32, 2 blocks of 2 heads, GELU, LayerNorm"
    vit = train("vit_digits", what, lambda: networks.Vit(networks.PLAIN), split, **how)
    twin = "its twin with attention weights (x/4)^2 / (0.001 + sum (x/4)^2), trained from scratch"
    train("vit_digits_power", twin, lambda: networks.Vit(networks.POWER), split, **how)
    twin = "for encrypted inference: BatchNorm, (x/4)^2 / (1 + sum (x/4)^2), trained to keep numbers small"
    train("vit_digits_encrypted", twin, lambda: networks.Vit(networks.ENCRYPTED), split, **how)
    for name, spelling, opset, what in (
        ("vit_digits_decomposed_torch", networks.TORCH, 13, "the ViT, Exp/ReduceSum/Div, erf, Sqrt/Div"),
        ("vit_digits_decomposed_tf", networks.TF, 13, "the ViT, Reciprocal, tanh-GELU, affine LayerNorm"),
    ):
        model = networks.Vit(spelling)
        model.load_state_dict(vit.state_dict())
        path = export(model, name, split.test, opset, dynamo=False)
        rows.append((name, f"{what}: the same weights", accuracy(model, split), _parameters(model), path))

    split = fashion()
    save("fashion_test", image=split.test[:1000])
    save("fashion_test_labels", labels=split.test_labels[:1000])
    save("fashion_calibration", image=split.train[:CALIBRATION])
    how = {"epochs": 12, "batch": 128, "rate": 2e-3}
    train("mlp_fashion", "MLP 784-128-10, ReLU", networks.Mlp, split, **how)
    train("mlp_fashion_square", "its twin with x^2 for ReLU", lambda: networks.Mlp(True), split, **how)
    what = "CNN: 3x3 convolutions, one of them depthwise, BatchNorm, ReLU, max and average pooling"
    train("cnn_fashion", what, networks.Cnn, split, **how)
    what = "LeNet: 5x5 convolutions, BatchNorm, x^2 and average pooling, for encrypted inference"
    train("lenet_fashion_square", what, networks.LenetSquare, split, **{**how, "epochs": 6})
    _write_readme(rows)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _write_readme(rows: list[tuple[str, str, float, int, Path]]) -> None:
    lines = [
        "# Example models",
        "",
        "Written by `python -m examples.train`; do not edit. Input `image` with a symbolic batch, output",
        "`logits`. Accuracy is over the whole test set: 450 digits, 10 000 images of Fashion-MNIST.",
        "",
        f"Digits are scikit-learn's 1797 images of 8x8, a quarter held out, stratified, seed {SEED};",
        "`../data` holds all of that quarter. Fashion-MNIST has its own test set, of which `../data` holds",
        f"the first 1000 images. Calibration data are {CALIBRATION} training images, and",
        f"`digits_training.npz` has {TRAINING}. Every training starts at seed {SEED}.",
        "",
        "| file | what | parameters | test accuracy | SHA-256 |",
        "|---|---|---|---|---|",
    ]
    for name, what, score, parameters, path in rows:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"| `{name}.onnx` | {what} | {parameters:,} | {score:.2%} | `{digest}` |")
    (HERE / "models" / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
