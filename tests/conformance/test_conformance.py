"""The stored results hold, and a sample of the cases still gives them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from .cases import Case, all_cases
from .check import check, compare
from .run import run_cases
from .table import TABLE, markdown, read_results

#: One or two cases of many operators, both that pass and that are refused.
SAMPLE = """
    abs add argmax_default_axis_example attention_4d_attn_mask averagepool_2d_pads
    batchnorm_epsilon_training_mode batchnorm_example cast_FLOAT_to_DOUBLE clip_example concat_2d_axis_0
    constant_pad conv_with_strides_padding convtranspose_output_shape cumsum_2d_axis_0 depthtospace_example
    dynamicquantizelinear einsum_transpose expand_dim_changed gather_elements_0 gelu_tanh_1
    gemm_all_attributes isinf_negative layer_normalization_3d_axis1_epsilon logsoftmax_large_number loop11
    lstm_defaults matmul_4d
    maxpool_2d_pads mish mod_mixed_sign_int32 nllloss_NCd1_weight nonzero_example onehot_with_axis
    pow_types_float32_int64 qlinearmatmul_2D_uint8_float32 reduce_max_bool_inputs
    reduce_log_sum_exp_keepdims_random resize_downsample_scales_linear_antialias
    resize_upsample_sizes_nearest_axes_2_3 rms_normalization_4d_axis0 round scatternd_add sce_mean sinh
    slice_neg_steps softmax_large_number split_equal_parts_1d_opset18 top_k training_dropout where_example
"""


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    return all_cases()


def test_nothing_is_wrong_and_most_passes(cases: dict[str, Case]) -> None:
    results = read_results()
    plain = Counter(status for name, (status, _) in results.items() if not cases[name].expanded)
    every = Counter(status for status, _ in results.values())
    assert set(every) == {"pass", "refused"}
    assert plain["pass"] >= 600


def test_the_results_are_of_all_cases_and_the_page_shows_them(cases: dict[str, Case]) -> None:
    results = read_results()
    assert set(results) == set(cases)
    assert TABLE.read_text(encoding="utf-8") == markdown(results, cases)


@pytest.mark.parametrize("name", SAMPLE.split())
def test_sample(name: str, cases: dict[str, Case]) -> None:
    case = cases[f"test_{name}"]
    assert check(case) == read_results()[case.name]


def test_a_wrong_number_is_seen() -> None:
    expected = [np.array([1.0, np.nan, np.inf], np.float32)]
    assert compare(expected, expected, 1e-3, 1e-7) is None
    assert compare([np.array([1.01, np.nan, np.inf], np.float32)], expected, 1e-3, 1e-7)
    assert compare([np.array([1, 0, np.inf], np.float32)], expected, 1e-3, 1e-7)
    assert compare([expected[0].astype(np.float64)], expected, 1e-3, 1e-7)
    assert compare([expected[0][None]], expected, 1e-3, 1e-7)
    assert compare([], expected, 1e-3, 1e-7)
    assert compare([np.array([1])], [np.array([2])], 1e9, 1e9)
    assert compare([np.array(True)], [np.array(False)], 1e9, 1e9)


@pytest.mark.slow
def test_every_case(cases: dict[str, Case]) -> None:
    stored = read_results()
    found = run_cases(list(cases), 2)
    assert {name: status for name, (status, _) in found.items()} == {
        name: status for name, (status, _) in stored.items()
    }
