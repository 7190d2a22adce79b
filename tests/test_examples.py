"""The committed example models do what their README says, and fetched files are what they should be."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from examples import fetch as fetching
from examples.evaluate import correct, original
from examples.fetch import FILES, FetchError, File, fetch

EXAMPLES = Path(fetching.__file__).parent
MODELS = sorted((EXAMPLES / "models").glob("*.onnx"))
#: Right answers on the committed test images: 450 digits, 1000 of Fashion-MNIST. The two largest logits are
#: at least 2e-4 apart on every image, far more than rounding moves them.
CORRECT = {
    "vit_digits": ("digits", 440),
    "vit_digits_power": ("digits", 435),
    "vit_digits_encrypted": ("digits", 444),
    "vit_digits_decomposed_torch": ("digits", 440),
    "vit_digits_decomposed_tf": ("digits", 440),
    "mlp_fashion": ("fashion", 893),
    "mlp_fashion_square": ("fashion", 900),
    "cnn_fashion": ("fashion", 902),
    "lenet_fashion_square": ("fashion", 910),
}


def operators(path: Path) -> set[str]:
    model = onnx.load(path)
    assert not model.functions
    return {node.op_type for node in model.graph.node}


def readme() -> dict[str, tuple[float, str]]:
    """File name -> test accuracy, SHA-256."""
    row = re.compile(r"^\| `(\S+)` \|.*\| ([\d.]+)% \| `([0-9a-f]{64})` \|$", re.MULTILINE)
    text = (EXAMPLES / "models" / "README.md").read_text(encoding="utf-8")
    return {name: (float(percent) / 100, digest) for name, percent, digest in row.findall(text)}


def test_readme_lists_every_model() -> None:
    assert {path.name for path in MODELS} == set(readme()) == {f"{name}.onnx" for name in CORRECT}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_is_the_one_of_the_readme(path: Path) -> None:
    content = path.read_bytes()
    assert len(content) < 3_000_000
    assert hashlib.sha256(content).hexdigest() == readme()[path.name][1]
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("name", CORRECT)
@pytest.mark.parametrize("batch", [1, 50])
def test_accuracy(name: str, batch: int) -> None:
    dataset, expected = CORRECT[name]
    path = EXAMPLES / "models" / f"{name}.onnx"
    inputs, run = original(path, batch)
    right, count = correct(inputs, run, dataset)
    assert right == expected
    if dataset == "digits":  # all of the test set is committed
        assert readme()[path.name][0] == pytest.approx(expected / count, abs=1e-4)


@pytest.mark.parametrize("name", ["vit_digits_power", "vit_digits_encrypted"])
def test_power_twins_have_no_exponential(name: str) -> None:
    found = operators(EXAMPLES / "models" / f"{name}.onnx")
    assert found.isdisjoint({"Softmax", "Exp", "ReduceMax", "ReduceLogSumExp", "Attention"})
    assert {"Pow", "ReduceSum", "Div"} <= found


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("torch", {"Exp", "ReduceSum", "Div", "Erf", "Sqrt", "Pow"}),
        ("tf", {"Exp", "ReduceSum", "Reciprocal", "Tanh", "Sqrt"}),
    ],
)
def test_decomposed_models_name_nothing(name: str, spelled: set[str]) -> None:
    found = operators(EXAMPLES / "models" / f"vit_digits_decomposed_{name}.onnx")
    assert found.isdisjoint({"Softmax", "Gelu", "LayerNormalization", "Attention"})
    assert spelled <= found


@pytest.mark.parametrize("dataset", ["digits", "fashion"])
def test_data(dataset: str) -> None:
    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(EXAMPLES / "data" / f"{dataset}_{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    test, calibration, labels = load("test"), load("calibration"), load("test_labels")
    assert set(test) == set(calibration) == {"image"}
    assert set(labels) == {"labels"}
    for images in (test["image"], calibration["image"]):
        assert images.dtype == np.float32
        assert images.min() == 0
        assert images.max() == 1
    assert len(test["image"]) == len(labels["labels"])
    assert set(labels["labels"].tolist()) == set(range(10))
    # Calibration images come from the training set: none is a test image.
    tests = {image.tobytes() for image in test["image"]}
    assert not any(image.tobytes() in tests for image in calibration["image"])


@pytest.fixture
def one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds one file, `it`; returns the file."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("LOWERKIT_CACHE", str(tmp_path))
    monkeypatch.setitem(FILES, "it", File("no-such-package==0", "folder/it.bin", digest, "CC0-1.0"))
    path = tmp_path / digest[:16] / "it.bin"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def test_fetch_takes_from_the_cache(one_file: Path) -> None:
    assert fetch("it") == one_file


def test_fetch_refuses_a_tampered_cache(one_file: Path) -> None:
    one_file.write_bytes(b"Weights")
    with pytest.raises(FetchError, match=r"it\.bin should have SHA-256"):
        fetch("it")


def test_fetch_refuses_an_unknown_name() -> None:
    with pytest.raises(FetchError, match=r"no file 'nothing'; known: minilm"):
        fetch("nothing")


def test_fetch_names_a_missing_program(one_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_file.unlink()
    monkeypatch.setitem(FILES, "it", File("no-such-package", "it.bin", "0" * 64, "CC0-1.0"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match="apt-get is needed"):
        fetch("it")


def test_fetch_says_why_pip_failed(one_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_file.unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(FetchError, match=r"pip download .* failed: .*no-such-package"):
        fetch("it")
