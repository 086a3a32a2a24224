"""Every public call of lib on another device: `make test-device`, on the pretend one.

TEST_DEVICE=cuda takes a GPU, TEST_ROOMS="slices svd" a part of the table.
"""

import os
from collections import Counter

import pretend
import pytest
import torch
from table import CASES, EXCEPTIONS, ON_CPU, ROOMS, differences, public_calls

DEVICE = os.environ.get("TEST_DEVICE", "pretend")
CHOSEN = os.environ.get("TEST_ROOMS", "").split() or list(ROOMS)
for room in ROOMS:
    __import__(f"cases_{room}")
CALLS = [name for name in CASES if name.split(".")[0] in CHOSEN]
ones, eye = torch.ones, torch.eye


@pytest.fixture(scope="session")
def device():
    if DEVICE != "pretend":
        return torch.device(DEVICE)
    if pretend.compiler() is None:
        pytest.skip("no C++ compiler, so no pretend device")
    return pretend.switch_on()


def test_every_public_call_has_a_case_or_a_reason_to_have_none():
    known = [*CASES, *EXCEPTIONS]
    assert Counter(known) == Counter(public_calls().keys())
    assert set(ON_CPU) <= set(CASES) and all(reason for reason in EXCEPTIONS.values())


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_what_it_gives_on_the_cpu(device, name):
    assert differences(name, device) == []


MIXES = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x @ y,
    "row": lambda x, y: torch.cat([x, y]),
    "choice": lambda x, y: torch.where(x > 0, x, y),
    "contraction": lambda x, y: torch.einsum("ij,jk->i", x, y),
    "system": torch.linalg.solve,
    "picked": lambda x, y: x.gather(0, y.long()),
    "picked from the CPU": lambda x, y: y[x.long()],
    "written": lambda x, y: x.index_put_((torch.tensor([0]),), y[:1]),
    "convolution": lambda x, y: torch.conv2d(x[None, None], y[None, None]),
    "normalised": lambda x, y: torch.nn.functional.group_norm(x[None], 1, y[0], y[0]),
}


@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_of_devices_fails(device, mix):
    assert MIXES[mix](eye(2), eye(2)) is not None
    MIXES[mix](eye(2).to(device), eye(2).to(device))
    with pytest.raises(RuntimeError):
        MIXES[mix](eye(2).to(device), eye(2))


def test_a_public_call_does_not_hide_a_mix(device):
    from cases_geometry import CURVE, ENDS, FEW, g, learned, phi
    from table import On

    from lib import svd
    from lib.geometry import geodesics, metric, potential

    here, x = On(device), eye(3).expand(1, 3, 3) + torch.arange(9.0).view(3, 3)
    fixed = eye(2, dtype=torch.float64).to(device)
    with pytest.raises(RuntimeError):
        metric.fisher_metric(learned(here), FEW)
    with pytest.raises(RuntimeError):
        geodesics.curve_length(lambda t: g(t) + fixed, CURVE)
    with pytest.raises(RuntimeError):
        geodesics.geodesic(g, here(ENDS[0]), ENDS[1])
    with pytest.raises(RuntimeError):
        svd.integrate(here(x), x, k=1)
    assert potential.bregman(phi, here(FEW), FEW).device.type == device.type  # moved on purpose


@pytest.mark.parametrize("draw", ["randn", "rand", "randperm"])
def test_a_cpu_generator_fails_on_a_device(device, draw):
    with pytest.raises(RuntimeError):
        getattr(torch, draw)(3, generator=torch.Generator(), device=device)


def test_the_pretend_device_draws_nothing_and_keeps_views(device):
    if DEVICE != "pretend":
        pytest.skip("of the pretend device alone")
    for draw in (lambda: torch.randn(2, device=device), ones(2, device=device).normal_):
        with pytest.raises(RuntimeError, match="draw on the CPU"):
            draw()
    x = ones(4, device=device)
    x.view(2, 2).T[0].zero_()
    assert x.tolist() == [0, 1, 0, 1] and x.unfold(0, 2, 2)[1].tolist() == [0, 1]


def test_the_number_of_calls_is_said(device, capsys):
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in sorted(EXCEPTIONS.items()))
    with capsys.disabled():
        print(f"\n{len(CALLS)} public calls on {device.type} as on the CPU")
        print(
            f"{len(EXCEPTIONS)} left out:\n{reasons}" if len(CHOSEN) == len(ROOMS) else "", end=""
        )
