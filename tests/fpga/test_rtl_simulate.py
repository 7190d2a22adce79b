"""RTL projects and their simulation by verilator and Icarus: codes, cycles, halts, undefined bits, lint.

These need xls-python (`pip install 'lowerkit[rtl]'`), verilator, iverilog, make and g++ (apt-get), and are skipped
where one that they need is missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from codes import codes
from hypothesis import given, settings
from hypothesis import strategies as st
from rtl_networks import BYTE, NETWORKS
from test_rtl import KERNELS, inputs

from lowerkit.errors import ArtifactError, PlanError, ToolError, UnsupportedError
from lowerkit.targets.fpga import runner
from lowerkit.targets.fpga.dataflow import network
from lowerkit.targets.fpga.design import Design, simulate
from lowerkit.targets.fpga.lang.interpret import run
from lowerkit.targets.fpga.rtl import design as printing
from lowerkit.targets.fpga.rtl.design import Rtl, print_rtl
from lowerkit.targets.fpga.rtl.network import print_network, simulate_network
from lowerkit.targets.fpga.rtl.project import write_rtl_project
from lowerkit.targets.fpga.rtl.queues import check_queues
from lowerkit.targets.fpga.rtl.simulate import RtlRunner, build, simulate_rtl

pytestmark = pytest.mark.skipif(find_spec("xls") is None, reason="needs xls-python")


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


verilated = needs("verilator", "make", "g++")
BY_NAME = {kernel.name: kernel for kernel in KERNELS}


def samples(made: Design, count: int = 6) -> dict[str, np.ndarray]:
    return {"x": codes(np.random.default_rng(0), made.inputs[0].shape, BYTE, count)}


def description(made: Design) -> dict:
    return {"project": "rtl", **made.described()}


def shallow(made: Design, channel: str) -> Rtl:
    """The design with a channel of two codes."""
    net = network(made)
    channels = tuple(replace(c, kind="fifo", depth=2) if c.name == channel else c for c in net.channels)
    return print_network(made, net=replace(net, channels=channels))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of a network with skip connections, built."""
    folder = tmp_path_factory.mktemp("artifact") / "rtl"
    made = NETWORKS["nested"]
    write_rtl_project(made, print_network(made), folder, golden=samples(made, 3))
    build(folder)
    return folder


@verilated
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), stalls=st.floats(0, 0.95))
def test_any_gaps_and_stalls_give_the_same_codes(nested: Path, seed: int, stalls: float) -> None:
    made = NETWORKS["nested"]
    found, cycles = RtlRunner(nested, description(made)).timed(samples(made), seed=seed, stalls=stalls)
    np.testing.assert_array_equal(found["y"], simulate(made, samples(made))["y"])
    assert cycles.latency <= cycles.total


@verilated
def test_full_speed_past_skip_connections(nested: Path) -> None:
    """A sample of 16 rows takes the cycles of each layer, a code in each; where a buffer turns, one more."""
    made = NETWORKS["nested"]
    _, cycles = RtlRunner(nested, description(made)).timed(samples(made, 20), stalls=False)
    assert 128 <= cycles.interval < 130


@verilated
def test_cycles_by_seed(nested: Path) -> None:
    made = NETWORKS["nested"]
    timed = RtlRunner(nested, description(made)).timed
    first, again, other = (timed(samples(made), seed=seed)[1] for seed in (1, 1, 2))
    assert first == again != other
    assert timed(samples(made), seed=1, stalls=0.9)[1].total > first.total


@verilated
def test_make_check_sees_a_code(nested: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nested, tmp_path / "rtl")
    assert "3 samples, 0 codes differ" in _made(folder, "check", 0)
    golden = folder / "golden" / "outputs.i64"
    numbers = np.fromfile(golden, "<i8")
    numbers[-1] += 1
    golden.write_bytes(numbers.tobytes())
    assert "sample 2, v_y[127]" in _made(folder, "check", 2)


@needs("iverilog", "make")
def test_make_icarus_sees_a_word(tmp_path: Path) -> None:
    made = NETWORKS["chain"]
    write_rtl_project(made, print_network(made), tmp_path / "rtl")
    assert "4 samples, 0 words differ" in _made(tmp_path / "rtl", "icarus", 0)
    golden = tmp_path / "rtl" / "golden" / "v_y.hex"
    words = golden.read_text().split()
    golden.write_text("\n".join([*words[:-1], f"{int(words[-1], 16) ^ 1:x}"]))
    assert "4 samples, 1 words differ" in _made(tmp_path / "rtl", "icarus", 2)


def _made(folder: Path, goal: str, status: int) -> str:
    done = subprocess.run(["make", "-s", goal], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


@verilated
def test_run_py_with_numpy_alone(nested: Path, tmp_path: Path) -> None:
    made, x = NETWORKS["nested"], samples(NETWORKS["nested"])
    shutil.copytree(nested, tmp_path / "rtl")
    (tmp_path / "fpga.json").write_text(json.dumps(description(made)))
    np.savez(tmp_path / "in.npz", x=x["x"] / 16)
    shutil.copyfile(runner.__file__, tmp_path / "run.py")
    command = [
        sys.executable,
        "-S",
        "-c",
        _BARE,
        str(Path(np.__file__).parent.parent),
        "run.py",
        "in.npz",
        "out.npz",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    wanted = simulate(made, x)["y"] / 16
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], wanted)


_BARE = """
import runpy, sys
sys.path.append(sys.argv[1])
sys.modules["lowerkit"] = None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@verilated
@pytest.mark.parametrize("name", ["linear_once", pytest.param("matmul_kept", marks=pytest.mark.slow)])
def test_simulators_agree(name: str) -> None:
    """On beats of several codes, and on two inputs, with half of the cycles lost."""
    kernel = BY_NAME[name]
    given_codes = inputs(kernel, 6)
    wanted = run(kernel, given_codes)
    for simulator in ("verilator", "icarus"):
        found, _ = simulate_rtl(kernel, given_codes, seed=3, simulator=simulator)
        for output, numbers in wanted.items():
            np.testing.assert_array_equal(found[output], numbers)


@needs("iverilog")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_icarus(name: str) -> None:
    made = NETWORKS[name]
    rtl, x = print_network(made), samples(made)
    for stalls in (True, False):
        found, _ = simulate_network(made, rtl, x, seed=4, stalls=stalls, simulator="icarus")
        np.testing.assert_array_equal(found["y"], simulate(made, x)["y"])


@verilated
def test_a_halt_names_the_layer() -> None:
    """The adder's skip connection holds too little of a sample, while the other path waits for all of it."""
    made = NETWORKS["skip"]
    rtl = shallow(made, "c_a_1")
    told = (
        "net_top halts after 0 of 96 codes of v_y: layer s gives nothing, as it waits for u, "
        "while channel c_a_1 from fork_a, of 0 codes, is full"
    )
    with pytest.raises(ToolError, match=told):
        simulate_network(made, rtl, samples(made), stalls=False, simulator="verilator")


@needs("iverilog")
def test_a_halt_in_icarus() -> None:
    made = NETWORKS["skip"]
    with pytest.raises(
        ToolError, match=r"net_top halts after 0 of 96 codes of v_y\. Simulate it with verilator"
    ):
        simulate_network(made, shallow(made, "c_a_1"), samples(made), simulator="icarus")


@pytest.mark.parametrize("name", NETWORKS)
def test_queues_hold_samples(name: str) -> None:
    check_queues(print_network(NETWORKS[name]))


def test_a_shallow_queue_is_refused(tmp_path: Path) -> None:
    made = NETWORKS["skip"]
    told = r"channel c_a_1 from fork_a to s holds 0 codes of a sample's 16.*Give it a depth of 16 codes"
    with pytest.raises(UnsupportedError, match=told):
        write_rtl_project(made, shallow(made, "c_a_1"), tmp_path / "rtl")
    assert not (tmp_path / "rtl").exists()
    # A channel that nothing goes around may be as shallow.
    check_queues(shallow(NETWORKS["chain"], "c_h"))


@needs("iverilog")
@pytest.mark.parametrize(("file", "line", "told"), [
    ("lk_fifo", "      valid <= 1'b0;\n", r"norm: port y is undefined in cycle \d+, x"),
    ("lk_fifo", "      waiting <= 0;\n", r"norm: port x is undefined in cycle \d+, x"),
    # A condition that is undefined does not hold.
    ("norm", "      count_1 <= 0;\n", "norm halts after 0 of 96 codes of y"),
])  # fmt: skip
def test_a_register_without_reset_is_seen(
    file: str, line: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Icarus says so, where simulators that know only 0 and 1 may not."""
    kernel = BY_NAME["norm"]
    rtl = print_rtl(kernel)
    x = inputs(kernel, 2)
    if file == "norm":
        (source,) = rtl.sources
        assert line in source.modules
        rtl = replace(rtl, sources=(replace(source, modules=source.modules.replace(line, "")),))
    else:
        shutil.copytree(printing.TEMPLATES, tmp_path, dirs_exist_ok=True)
        text = (tmp_path / f"{file}.v").read_text()
        assert line in text
        (tmp_path / f"{file}.v").write_text(text.replace(line, ""))
        monkeypatch.setattr(printing, "TEMPLATES", tmp_path)
    with pytest.raises(ToolError, match=told):
        simulate_rtl(kernel, x, rtl=rtl, simulator="icarus")


@needs("verilator")
@pytest.mark.parametrize("name", [*BY_NAME, *NETWORKS])
def test_lint(name: str, tmp_path: Path) -> None:
    rtl = print_rtl(BY_NAME[name]) if name in BY_NAME else print_network(NETWORKS[name])
    (tmp_path / "design.v").write_text(rtl.verilog)
    command = ["verilator", "--lint-only", "-Wall", "--top-module", rtl.name, "design.v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs("verilator", "make")
def test_lint_of_a_project(tmp_path: Path) -> None:
    made = NETWORKS["nested"]
    write_rtl_project(made, print_network(made), tmp_path / "rtl")
    _made(tmp_path / "rtl", "lint", 0)
    # Waivers are needed: each of them.
    waivers = tmp_path / "rtl" / "waivers.vlt"
    lines = waivers.read_text().splitlines()
    for rule in [line for line in lines if line.startswith("lint_off")]:
        waivers.write_text("\n".join([line for line in lines if line != rule]))
        _made(tmp_path / "rtl", "lint", 2)


def test_projects_are_byte_identical(tmp_path: Path) -> None:
    made = NETWORKS["skip"]
    files = []
    for name in ("a", "b"):
        write_rtl_project(made, print_network(made), tmp_path / name)
        found = (tmp_path / name).rglob("*")
        files.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in found if p.is_file()})
    assert files[0] == files[1]
    assert {"layers/l.v", "dslx/l.x", "net_top.v", "lk_fifo.v", "golden/v_x.hex"} <= set(files[0])


def test_missing_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    rtl = print_rtl(KERNELS[0])
    x = inputs(KERNELS[0], 1)
    with pytest.raises(PlanError, match=r"no simulator 'questa'. Choose of verilator, icarus"):
        simulate_rtl(KERNELS[0], x, rtl=rtl, simulator="questa")
    with pytest.raises(PlanError, match=r"stalls must be likely from 0 \(none\) to below 1, not 1"):
        simulate_rtl(KERNELS[0], x, rtl=rtl, stalls=1.0, simulator="icarus")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match=r"verilator is not installed.*apt-get install verilator"):
        simulate_rtl(KERNELS[0], x, rtl=rtl)
    with pytest.raises(ToolError, match=r"iverilog is not installed.*apt-get install iverilog"):
        simulate_rtl(KERNELS[0], x, rtl=rtl, simulator="icarus")


@verilated
def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    made = NETWORKS["nested"]
    with pytest.raises(ArtifactError, match="simulation does not start"):
        RtlRunner(tmp_path, description(made)).timed(samples(made))
