"""One unit for many linear layers gives what separate layers give, bit for bit."""

from __future__ import annotations

from trace import trace

import csim
import numpy as np
import pytest
from codes import codes
from hypothesis import given, settings
from hypothesis import strategies as st

from lowerkit.targets.fpga.formats import Fixed
from lowerkit.targets.fpga.kernels.linear import linear
from lowerkit.targets.fpga.kernels.unit import Job, linear_unit, schedule_of
from lowerkit.targets.fpga.lang.interpret import run


def a_job(rng: np.random.Generator) -> Job:
    rows, inner, columns = (int(n) for n in rng.integers(1, 8, 3))
    formats = [Fixed(6, int(i)) for i in rng.integers(-2, 3, columns)]
    w = np.stack([codes(rng, (inner,), f) for f in formats], 1)
    bias = rng.integers(-3000, 3001, columns) if rng.random() < 0.7 else None
    return Job(rows, w, Fixed(8, int(rng.integers(0, 5))), formats, Fixed(8, int(rng.integers(2, 9))), bias)


def some_jobs(rng: np.random.Generator, count: int) -> list[Job]:
    return [a_job(rng) for _ in range(count)]


def separate(job: Job, x: np.ndarray) -> np.ndarray:
    kernel, _ = linear("f", (job.rows,), job.weights, job.x, list(job.formats), job.y, bias=job.bias)
    return run(kernel, {"x": x})["y"].reshape(len(x), -1)


def inputs(
    rng: np.random.Generator, jobs: list[Job], batch: int
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Samples of every job in turn, filled up with numbers that must not matter."""
    size = max(job.rows * len(job.weights) for job in jobs)
    x = codes(rng, (size,), jobs[0].x, batch=batch * len(jobs))
    number = np.repeat(np.arange(len(jobs)), batch)[:, None]
    each = [
        x[j * batch : (j + 1) * batch, : job.rows * len(job.weights)].reshape(batch, job.rows, -1)
        for j, job in enumerate(jobs)
    ]
    return {"x": x, "job": number}, each


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_jobs_of_any_sizes(seed: int, count: int, lanes: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = some_jobs(rng, count)
    kernel, cost = linear_unit("unit", jobs, lanes)
    given_codes, each = inputs(rng, jobs, 3)
    found = run(kernel, given_codes)["y"]
    for j, job in enumerate(jobs):
        size = job.rows * job.weights.shape[1]
        np.testing.assert_array_equal(found[3 * j : 3 * j + 3, :size], separate(job, each[j]))
        assert not found[3 * j : 3 * j + 3, size:].any()
    # One for each lane, and those of four addresses.
    assert lanes <= cost.multipliers <= lanes + 4
    for j, job in enumerate(jobs):
        ran = trace(kernel, {name: array[3 * j] for name, array in given_codes.items()})
        own = schedule_of(job, lanes, 0)
        assert (ran.cycles, ran.fills) == (own.cycles, own.fills)
        assert own.cycles <= cost.cycles


def test_printed(tmp_path) -> None:
    rng = np.random.default_rng(2)
    jobs = some_jobs(rng, 4)
    kernel, _ = linear_unit("unit", jobs, 3)
    given_codes, _ = inputs(rng, jobs, 4)
    want, found = run(kernel, given_codes)["y"], csim.run(kernel, given_codes, tmp_path)["y"]
    for sample, number in enumerate(given_codes["job"][:, 0]):
        size = jobs[number].rows * jobs[number].weights.shape[1]
        np.testing.assert_array_equal(found[sample, :size], want[sample, :size])


def test_refusals() -> None:
    w = np.ones((2, 1), np.int64)
    jobs = [
        Job(1, w, Fixed(8, 4), [Fixed(4, 2)], Fixed(8, 4)),
        Job(1, w, Fixed(9, 4), [Fixed(4, 2)], Fixed(8, 4)),
    ]
    with pytest.raises(ValueError, match="one width and sign"):
        linear_unit("unit", jobs, 1)
    with pytest.raises(ValueError, match="job 0 has an output of more fraction bits"):
        linear_unit("unit", [Job(1, w, Fixed(8, 8), [Fixed(4, 4)], Fixed(8, 4))], 1)
