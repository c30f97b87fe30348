"""Layers that are faster on a CPU, against torch's own."""

import copy

import pytest
import torch
from torch import nn

from ddp_workbook.training.cpu_layers import Dropout, MatmulConv2d, compute_by_matmul

CONVOLUTIONS = [  # and whether it can be a matrix product, for some size of image at least
    ({"kernel_size": 1}, True),
    ({"kernel_size": 1, "stride": 2}, True),
    ({"kernel_size": 3, "padding": 1}, True),
    ({"kernel_size": 3, "padding": 1, "stride": 2}, True),
    ({"kernel_size": 3, "padding": 1, "stride": (1, 2)}, True),
    ({"kernel_size": 3, "padding": 1, "dilation": 1, "groups": 2}, False),
    ({"kernel_size": 3, "padding": 2, "dilation": 2}, False),
    ({"kernel_size": 5, "padding": 2}, False),
    ({"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}, False),
    ({"kernel_size": 1, "padding": 1}, False),
]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (5, 5), (2, 5)])
@pytest.mark.parametrize(("arguments", "replaced"), CONVOLUTIONS)
def test_a_convolution_and_its_gradients_stay_the_same(arguments, replaced, size):
    torch.manual_seed(1)
    plain = nn.Conv2d(4, 6, bias=False, **arguments).double()
    ours = nn.Sequential(copy.deepcopy(plain))
    compute_by_matmul(ours)
    assert isinstance(ours[0], MatmulConv2d) == replaced
    images = torch.randn(3, 4, *size, dtype=torch.float64)
    of_images = []
    for model in (ours, plain):
        x = images.clone().requires_grad_()
        y = model(x)
        y.square().sum().backward()
        of_images.append((y, x.grad))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(*of_images, strict=True))
    assert torch.allclose(ours[0].weight.grad, plain.weight.grad, rtol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_under_autocast_a_whole_image_is_computed_in_bf16_and_its_gradients_fit(stride):
    """Against float64: numbers of 8 bits leave errors of about 2**-8 of the largest value."""
    torch.manual_seed(1)
    exact = nn.Conv2d(16, 6, 3, stride, padding=1, bias=False).double()
    ours = nn.Sequential(copy.deepcopy(exact).float())
    compute_by_matmul(ours)
    images = torch.randn(3, 16, 2, 2)
    found = []
    for model, x in ((ours, images.clone()), (exact, images.double())):
        with torch.autocast("cpu", torch.bfloat16, enabled=model is ours):
            y = model(x.requires_grad_())
        y.double().square().sum().backward()
        found.append((y, x.grad, next(model.parameters()).grad))
    assert [each.dtype for each in found[0]] == [torch.bfloat16, torch.float32, torch.float32]
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() < 0.03 * theirs.abs().max()


def test_convolutions_with_a_bias_stay_as_they_are():
    model = nn.Sequential(nn.Conv2d(4, 6, 1))
    compute_by_matmul(model)
    assert type(model[0]) is nn.Conv2d


def test_other_devices_use_their_own_convolution_and_dropout():
    """The device "meta" computes shapes only: a mask that is drawn on the CPU would not fit."""
    model = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), Dropout(0.5))
    compute_by_matmul(model)
    x = torch.ones(2, 4, 5, 5, device="meta")
    assert model.to("meta")(x).shape == (2, 6, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_dropout_does_what_torchs_does(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1000, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    judge = nn.Dropout(p)(x)
    assert y.dtype == judge.dtype and set(y.unique().tolist()) == set(judge.unique().tolist())  # 0 and 1 / (1 - p)
    spread = (p * (1 - p) / 1e6) ** 0.5
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=5 * spread)
    y.sum().backward()
    assert torch.equal(x.grad, y)  # a value's gradient is the factor that the value was given
    assert Dropout(p).eval()(x) is x or torch.equal(Dropout(p).eval()(x), x)
