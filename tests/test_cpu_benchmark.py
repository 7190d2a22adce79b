"""The benchmark of the cpu target: its processes, its arithmetic, and what it says of the machine."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import cpu_contenders, cpu_workers
from benchmarks.cpu_contenders import CONTENDERS, REFERENCE, Case, LeftOut
from benchmarks.cpu_summary import MEAN, document, summary
from benchmarks.idle import Watch
from benchmarks.models import MODELS


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.write(tmp_path_factory.mktemp("benchmark") / "mlp", MODELS["mlp"])


def test_a_case_has_the_models_samples(case: Case) -> None:
    images = np.load(Path(__file__).parent.parent / "examples" / "data" / "fashion_test.npz")["image"]
    samples = case.samples()
    assert len(samples) == len(images)
    np.testing.assert_array_equal(samples[3]["image"], images[3:4])


def test_a_worker_runs_what_it_prepared(case: Case) -> None:
    contender = CONTENDERS[REFERENCE]
    assert cpu_workers.prepare_apart(contender, case)["megabytes"] == pytest.approx(0.408, abs=0.001)
    worker = cpu_workers.Worker(contender, case, threads=1)
    try:
        assert worker.ready["ran"] == "fp32"
        turn = worker.turn(0.01)
        (found,) = worker.outputs(case.directory / "found.npz")
    finally:
        worker.close()
    assert 0 < turn["seconds"] < 1
    assert 0 <= turn["idle_cpu"] < 1
    session = ort.InferenceSession(str(case.original), providers=["CPUExecutionProvider"])
    wanted = session.run(None, dict(case.samples()[7]))[0]
    assert found.shape == (1000, 1, 10)
    np.testing.assert_array_equal(found[7], wanted)
    outputs = [{"logits": array} for array in found]
    score = MODELS["mlp"].score
    assert score is not None
    assert score(outputs) == pytest.approx(0.893)
    assert MODELS["mlp"].cosine(outputs, outputs) == pytest.approx(1)
    assert MODELS["mlp"].cosine([{"logits": -array} for array in found], outputs) == pytest.approx(-1)


def test_dynamic_quantisation_prepares(case: Case) -> None:
    contender = CONTENDERS["onnxruntime int8"]
    facts = cpu_workers.prepare(contender, case)
    assert "quantize_dynamic, per channel" in facts["note"]
    assert facts["megabytes"] < 0.15
    (logits,) = contender.open(case, contender.path(case), 1).run(case.samples()[0])
    assert logits.shape == (1, 10)


def test_what_cannot_take_part_is_left_out(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = cpu_workers.prepare(CONTENDERS["onnxruntime fused"], case)
    assert fused == {"left_out": "onnxruntime.transformers.optimizer is for transformers"}
    monkeypatch.setattr(cpu_contenders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LeftOut, match="openvino is not installed"):
        CONTENDERS["OpenVINO fp32"].check_installed()


def row(contender: str, threads: int, ms: list[float], **others: Any) -> dict[str, Any]:
    precision = CONTENDERS[contender].precision
    return {
        "model": "m",
        "contender": contender,
        "precision": precision,
        "threads": threads,
        "ms": ms,
        "ran": precision,
        "foreign_load": 0.0,
        **others,
    }


def test_ratios_are_to_the_fastest_peer_round_by_round() -> None:
    rows = [
        row("lowerkit fp32", 1, [1.0, 3.0, 2.0]),
        row("onnxruntime fp32", 1, [2.0, 2.0, 2.0]),
        row("onnxruntime fused", 1, [1.0, 2.0, 4.0]),
        row("OpenVINO fp32", 1, [1.6, 1.5, 1.5]),
        row("OpenVINO int8", 1, [0.1, 0.1, 0.1]),
        row("OpenVINO fp32", 2, [0.1, 0.1, 0.1]),
        {"model": "m", "contender": "IREE fp32", "precision": "fp32", "left_out": "not installed"},
    ]
    one, mean = summary(rows)
    assert (one["peer"], one["ours"], one["theirs"]) == ("OpenVINO fp32", 2.0, 1.5)
    assert one["ratio"] == pytest.approx(2.0 / 1.5)
    assert one["low"] < one["ratio"] < one["high"] < 2.0
    assert mean["model"] == MEAN
    assert mean["ratio"] == pytest.approx(one["ratio"])


def test_the_mean_is_geometric() -> None:
    rows = []
    for model, ours in (("a", 1.0), ("b", 4.0)):
        rows += [
            {**row("lowerkit fp32", 1, [ours]), "model": model},
            {**row("OpenVINO fp32", 1, [2.0]), "model": model},
        ]
    assert summary(rows)[-1]["ratio"] == pytest.approx(math.sqrt(0.5 * 2.0))


def test_a_row_says_what_speaks_against_it() -> None:
    rows = [
        row("lowerkit bf16", 2, [1.0], foreign_load=0.4),
        row("OpenVINO bf16", 2, [1.0], ran="36 f32 (hint f32)"),
    ]
    remark = summary(rows)[0]["remark"]
    assert "40% used by others" in remark
    assert "fell back to float32" in remark


def test_the_document_leaves_nothing_out() -> None:
    facts = {"prepare_seconds": 1.0, "open_seconds": 1.0, "megabytes": 1.0, "peak_megabytes": 1.0, "note": ""}
    more = {"processors": 1.0, "idle_cpu": 0.0, "cosine": 1.0, "score": float("nan"), **facts}
    rows = [
        row("lowerkit fp32", 1, [1.0], **more),
        row("OpenVINO fp32", 1, [2.0], **more),
        {"model": "m", "contender": "IREE fp32", "precision": "fp32", "left_out": "it is not installed"},
    ]
    machine = {"processor": "P", "processors": 2, "features": [], "packages": {"onnxruntime": "1"}}
    text = document("How.", {"machine": machine, "rows": rows, "summary": summary(rows)})
    for part in ("How.", "2 x P", "onnxruntime 1", "| 0.50 |", "it is not installed", "| – |"):
        assert part in text


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process
    process.kill()
    process.wait()


def test_what_others_compute_is_seen_and_what_we_do_is_not(busy: subprocess.Popen[bytes]) -> None:
    theirs, ours = Watch(), Watch([busy.pid])
    # Until it has had a fifth of a second, however busy the machine is.
    stat = Path(f"/proc/{busy.pid}/stat")
    before = int(stat.read_text().rpartition(")")[2].split()[11])
    while int(stat.read_text().rpartition(")")[2].split()[11]) < before + 20:
        time.sleep(0.02)
    seen, known = theirs.foreign() * theirs.elapsed(), ours.foreign() * ours.elapsed()
    assert seen - known > 0.15
