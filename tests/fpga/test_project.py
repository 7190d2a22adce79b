"""Projects: what g++ makes of them equals the integer model, whatever the interface, and is the same on every run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lowerkit.errors import PlanError, ToolError
from lowerkit.targets.fpga import csim
from lowerkit.targets.fpga.design import Design, Layer, Port, simulate
from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.interfaces import INTERFACES
from lowerkit.targets.fpga.kernels import elementwise, layout
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.kernels.schedule import built
from lowerkit.targets.fpga.kernels.softmax import fixed
from lowerkit.targets.fpga.project import write_project

F, U = Fixed(12, 4), Fixed(9, 0, False)
RNG = np.random.default_rng(2)


def residual() -> Design:
    """Two inputs, a skip connection, a softmax, two outputs, of which one is an input's copy; odd names."""
    values = {
        "x.1": Port("x.1", (4, 6), F),
        "x_1": Port("x_1", (4, 6), F),
        "h": Port("h", (4, 6), F),
        "sum": Port("sum", (4, 6), F),
        "turned": Port("turned", (6, 4), F),
        "flat": Port("flat", (24,), F),
        "p": Port("p", (6, 4), U),
    }
    weights = RNG.integers(-200, 200, (6, 6))
    made = [
        (linear("l0", (4,), weights, F, F, F, reuse=6), ("x.1",), "h"),
        (elementwise.add("l1", (4, 6), (4, 6), F, F, F), ("h", "x_1"), "sum"),
        (layout.transpose("l2", (4, 6), (1, 0), F), ("sum",), "turned"),
        (built(fixed(6, 4, F, U, name="l3"), 6), ("turned",), "p"),
    ]
    layers = [Layer(k.name, f"node of {w}", "Any", k, r, (w,), s) for (k, s), r, w in made]
    outputs = (values["p"], values["sum"])
    return Design("small", (values["x.1"], values["x_1"]), outputs, values, {"flat": "sum"}, tuple(layers))


def codes(count: int) -> dict[str, np.ndarray]:
    return {n: RNG.integers(F.range.low, F.range.high, (count, 4, 6), endpoint=True) for n in ("x.1", "x_1")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def needs_compiler() -> None:
    if shutil.which("g++") is None or shutil.which("make") is None:
        pytest.skip("there is no g++ or no make")


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_interface_gives_the_same_codes(tmp_path: Path, interface: str) -> None:
    needs_compiler()
    made, given = residual(), codes(50)
    write_project(made, tmp_path / "hls", part="any", clock_ns=5, interface=interface, golden=codes(3))
    csim.build(tmp_path / "hls")
    found = csim.CsimRunner(tmp_path / "hls", made.described()).codes(given)
    for name, wanted in simulate(made, given).items():
        np.testing.assert_array_equal(found[name].reshape(wanted.shape), wanted)
    check = ["make", "-s", "check"]
    done = subprocess.run(check, cwd=tmp_path / "hls", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 samples, 0 codes differ" in done.stdout
    # One code of the expected ones changed, in the last sample's last port: the check has to see it.
    golden = tmp_path / "hls" / "golden" / "outputs.i64"
    numbers = np.frombuffer(golden.read_bytes(), "<i8").copy()
    numbers[-1] += 1
    golden.write_bytes(numbers.tobytes())
    done = subprocess.run(check, cwd=tmp_path / "hls", capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "sample 2, v_sum[23]" in done.stdout


def test_clean_under_sanitizers(tmp_path: Path) -> None:
    needs_compiler()
    write_project(residual(), tmp_path / "hls", part="any", clock_ns=5)
    command = ["make", "-s", "sanitize"]
    done = subprocess.run(command, cwd=tmp_path / "hls", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "0 codes differ" in done.stdout


def test_projects_are_byte_identical(tmp_path: Path) -> None:
    made = residual()
    for name in ("a", "b"):
        write_project(made, tmp_path / name, part="any", clock_ns=5)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_what_a_reader_sees(tmp_path: Path) -> None:
    write_project(residual(), tmp_path, part="xc7z020clg400-1", clock_ns=5)
    layer = (tmp_path / "layers" / "l0.h").read_text()
    assert "// Layer l0: Any, node 'node of h'." in layer
    assert "// in  x: 4 x 6, codes from -2048 to 2047, 'x.1'" in layer
    source = (tmp_path / "layers" / "l0.cpp").read_text()
    assert "// y = x W, 6 to 6, ap_fixed<12,4> to ap_fixed<12,4>" in source
    assert "#pragma HLS UNROLL" in source
    assert "#pragma HLS ARRAY_PARTITION variable=l0_w" in source
    top = (tmp_path / "small.cpp").read_text()
    assert "#pragma HLS DATAFLOW" in top
    assert "type=fifo" in top
    assert "type=pipo" in top
    header = (tmp_path / "small.h").read_text()
    # x.1 and x_1 are not the same port.
    assert "ap_int<12> v_x_1[24], const ap_int<12> v_x_1_1[24]" in header
    script = (tmp_path / "vitis_hls.tcl").read_text()
    assert "set_part {xc7z020clg400-1}" in script
    assert "outputs.i64 4 check" in script
    assert max(len(line) for path in tmp_path.glob("layers/*") for line in path.read_text().split("\n")) < 400


def test_no_script_without_a_part(tmp_path: Path) -> None:
    write_project(residual(), tmp_path / "hls", part=None, clock_ns=5)
    assert not (tmp_path / "hls" / "vitis_hls.tcl").exists()


def test_unknown_interface(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="memory, axi, stream"):
        write_project(residual(), tmp_path / "hls", part=None, clock_ns=5, interface="pcie")


@pytest.mark.parametrize("missing", ["g++", "make"])
def test_missing_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A PATH that has one of the two alone."""
    other = {"g++": "make", "make": "g++"}[missing]
    found = shutil.which(other)
    if found is None:
        pytest.skip(f"there is no {other}")
    (tmp_path / other).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=rf"{missing.replace('+', '.')} is not installed"):
        csim.build(tmp_path)
