"""What the calls of this room take, and what they refuse: one law for each kind of value."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lib.geometry import checks

F64 = torch.float64


class Table:
    """Converts to an array as a data frame does."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


@pytest.mark.parametrize(
    "given",
    [
        [[0.1, 0.7]],
        ((0.1, 0.7),),
        np.array([[0.1, 0.7]]),
        np.array([[0.7, 0.1]])[:, ::-1],
        Table([[0.1, 0.7]]),
        torch.tensor([[0.1, 0.7]], dtype=F64),
    ],
    ids=["list", "tuple", "array", "reversed array", "data frame", "tensor"],
)
def test_points_come_in_many_shapes_and_keep_double_precision(given):
    t = checks.as_points(given)
    assert t.dtype == F64 and t.tolist() == [[0.1, 0.7]]


def test_an_array_that_may_not_be_written_is_read_without_a_warning(recwarn):
    array = np.ones((2, 2))
    array.flags.writeable = False
    assert checks.float64(array).sum() == 4 and not recwarn


def test_tensors_and_arrays_keep_their_precision_and_integers_become_doubles():
    assert checks.as_points(np.ones((1, 2), np.float32)).dtype == torch.float32
    assert checks.as_points(torch.ones(1, 2, dtype=torch.float16)).dtype == torch.float16
    assert checks.as_points([[1, 2]]).dtype == F64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((1, 2), complex), "complex128, not real"),
        (torch.ones(1, 2, dtype=torch.complex64), "t is complex"),
        ([["a", "b"]], "not real numbers"),
        (Table([[None, 1.0]]), r"object, not real numbers.*\.astype\(float\)"),
        ([[1.0, 2.0], [3.0]], "rows of unequal length"),
        ([0.0, 1.0], r"shape \(2,\).*t\[:, None\] for one parameter"),
        (1.0, r"shape \(\)"),
        ([[0.0, np.inf]], r"t\[0\] = \[0.0, inf\] is not finite"),
    ],
)
def test_what_are_no_points_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        checks.as_points(values)


@pytest.mark.parametrize("value", [0, -3, 2.0, 12.5, None, "4", np.nan])
def test_only_whole_numbers_that_are_large_enough_count(value):
    with pytest.raises(ValueError, match=r"grid=.*give an integer of at least 1"):
        checks.require_whole(1, grid=value)
    checks.require_whole(1, grid=1, steps=np.int64(7))


CODINGS = [(-1, 1), (0, 1), (False, True)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.sampled_from(CODINGS),
    st.sampled_from(["int8", "int64", "float32", "float64"]),
)
def test_both_codings_of_two_states_give_the_same_sites(up, coding, dtype):
    x = torch.tensor([coding[state] for state in up], dtype=getattr(torch, dtype))
    assert checks.occupied(x).tolist() == up


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=6),
    st.sampled_from([[1.0, 2.0], [-1.0, 0.0], [0.3, 1.0], [float("nan"), 1.0], [-1.0, 2.0]]),
)
def test_any_other_coding_is_refused(sites, states):
    x = torch.tensor([states[int(site)] for site in sites] + states)
    with pytest.raises(ValueError, match="coded -1 and \\+1, or 0 and 1"):
        checks.occupied(x)


@pytest.mark.parametrize(
    ("natural", "message"),
    [
        (lambda t: t.numpy(), "returned ndarray"),
        (lambda t: t[:, :1], r"returned \(4, 1\) for t of shape \(4, 2\)"),
        (lambda t: t.sum(1), r"returned \(4,\)"),
        (lambda t: t / 0, "not finite"),
        (np.log, "torch.log"),
        ("log", "natural = 'log'"),
    ],
    ids=["array", "one column", "one number", "infinite", "ufunc", "text"],
)
def test_natural_coordinates_are_as_many_as_the_parameters(natural, message):
    with pytest.raises(ValueError, match=message):
        checks.mapped(natural, torch.ones(4, 2, dtype=F64))


class Broken(nn.Module):
    """Answers with anything."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.zeros(1)), answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda x: x[:, :2], "network is of type function"),
        (nn.Flatten(), "no weights"),
        (nn.Linear(4, 2), "cannot read samples of shape"),
        (nn.Linear(3, 1), r"returned \(5, 1\).*expected \(5, 2\)"),
        (Broken(lambda x: x[:, :2].numpy()), "returned ndarray"),
        (Broken(lambda x: x[:, :2] * np.nan), "network.samples. has 10 entries"),
        (Broken(lambda x: {}["f"]), "f"),
    ],
    ids=["function", "no weights", "input size", "output size", "array", "nan", "bug inside"],
)
def test_a_network_is_tried_before_it_is_trained(network, message):
    with pytest.raises((ValueError, KeyError), match=message):
        checks.trainable(network, torch.ones(5, 3), (2,))


def test_a_double_network_is_trained_in_single_precision_and_the_own_one_left_alone():
    own = nn.Linear(3, 2).double()
    copied = checks.trainable(own, torch.ones(5, 3), (2,))
    assert copied.weight.dtype == torch.float32 and own.weight.dtype == F64
    torch.testing.assert_close(copied.weight.double(), own.weight, rtol=1e-6, atol=0)
