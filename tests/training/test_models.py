"""The network against torchvision's own, and the matrix products against oneDNN's convolutions."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import resnet50

from ddp_workbook.config import TrainConfig
from ddp_workbook.recipes import RECIPES
from ddp_workbook.specs import LSTM_LAYERS, LSTM_WIDTH, VIT_HEADS, VIT_WIDTH
from ddp_workbook.training.cpu_layers import MatmulConv2d
from ddp_workbook.training.models import build_model, count_parameters


def test_large_images_get_torchvisions_own_network():
    ours, theirs = build_model(TrainConfig(image_size=224), 7), resnet50(num_classes=7)
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_small_images_change_the_weights_of_the_stem_and_no_others():
    ours, theirs = build_model(TrainConfig(), 10).state_dict(), resnet50(num_classes=10).state_dict()
    assert [k for k in theirs if ours[k].shape != theirs[k].shape] == ["conv1.weight"]
    assert ours["conv1.weight"].shape == (64, 3, 3, 3)
    assert all((v == 0).all() for k, v in ours.items() if k.startswith("layer") and k.endswith("bn3.weight"))


@pytest.mark.parametrize(("stage", "channels"), [("layer2", 256), ("layer3", 512), ("layer4", 1024)])
@pytest.mark.parametrize("size", [4, 7])  # 7: from images of 28 pixels
def test_shortcuts_of_small_images_average_the_pixels_that_they_would_skip(stage, channels, size):
    shortcut = build_model(TrainConfig(), 10).get_submodule(stage)[0].downsample.eval()
    images = torch.randn(2, channels, size, size)
    even = nn.functional.pad(images, (0, size % 2, 0, size % 2), mode="replicate")  # the mean of a pixel with itself
    means = even.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    assert torch.allclose(shortcut(images), shortcut[1:](means), atol=1e-5)


def test_whole_network_and_its_gradients_equal_those_of_plain_convolutions():
    torch.manual_seed(0)
    ours = build_model(TrainConfig(), 10).train()
    plain = copy.deepcopy(ours)
    for module in plain.modules():
        if isinstance(module, MatmulConv2d):
            module.__class__ = nn.Conv2d
    for module in [*ours.modules(), *plain.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # a block that starts as the identity would hide its convolutions
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    for model in (ours.double(), plain.double()):
        nn.functional.cross_entropy(model(images.double()), labels).backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet50", "vit"])
def test_gradients_have_the_strides_of_their_weights(name):
    """Else DDP would copy each one into its bucket, and warn."""
    model = build_model(TrainConfig(model=name), 10).to(memory_format=torch.channels_last)
    model(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    assert all(p.grad.stride() == p.stride() for p in model.parameters())


def test_the_mlp_layer_by_layer():
    """784*512+512 + 512*256+256 + 256*128+128 + 128*10+10 parameters."""
    model = build_model(RECIPES["mlp-mnist"], 10)
    assert count_parameters(model) == 401_920 + 131_328 + 32_896 + 1_290
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Flatten", *["Linear", "ReLU", "Dropout"] * 3, "Linear"]
    assert {module.p for module in model if isinstance(module, nn.Dropout)} == {0.2}


def test_the_cnn_layer_by_layer():
    """32*9+32 + 64*32*9+64 + 3136*128+128 + 128*10+10 parameters."""
    model = build_model(RECIPES["cnn-mnist"], 10)
    assert count_parameters(model) == 320 + 18_496 + 401_536 + 1_290
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_the_vision_transformer_equals_torchs_own_layers():
    """nn.TransformerEncoderLayer with LayerNorm first: the same logits and gradients."""
    torch.manual_seed(0)
    ours = build_model(TrainConfig(model="vit"), 10)
    embedding, *rest = copy.deepcopy(ours)
    blocks, (norm, _, head) = rest[:-3], rest[-3:]
    torchs = []
    for attention, feed_forward in zip(blocks[::2], blocks[1::2], strict=True):
        layer = nn.TransformerEncoderLayer(
            VIT_WIDTH, VIT_HEADS, 4 * VIT_WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        layer.norm1, layer.norm2, layer.linear1, layer.linear2 = attention[0], *(feed_forward[i] for i in (0, 1, 3))
        layer.self_attn.in_proj_weight = attention[1].query_key_value.weight
        layer.self_attn.in_proj_bias.data.zero_()
        layer.self_attn.out_proj = attention[1].project
        torchs.append(layer)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    tokens = torch.stack(
        [image.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1) for image in images]
    )
    tokens = tokens.flatten(2) @ embedding.project.weight.flatten(1).T + embedding.project.bias + embedding.position
    plain = head(norm(nn.Sequential(*torchs)(tokens)).mean(1))
    logits = ours(images)
    assert torch.allclose(logits, plain, atol=1e-5)
    for one in (logits, plain):
        nn.functional.cross_entropy(one, labels).backward()
    pairs = zip(ours.parameters(), [*embedding.parameters(), *nn.ModuleList(rest).parameters()], strict=True)
    assert all(torch.allclose(mine.grad, theirs.grad, atol=1e-5) for mine, theirs in pairs)


def test_the_lstm_equals_one_that_is_stepped_row_by_row():
    torch.manual_seed(0)
    ours = build_model(TrainConfig(model="lstm"), 10)
    lstm, head = ours
    cells = [nn.LSTMCell(3 * 32, LSTM_WIDTH), *(nn.LSTMCell(LSTM_WIDTH, LSTM_WIDTH) for _ in range(LSTM_LAYERS - 1))]
    for number, cell in enumerate(cells):
        cell.load_state_dict({name: getattr(lstm, f"{name}_l{number}") for name in cell.state_dict()})
    images, states = torch.randn(4, 3, 32, 32), [None] * LSTM_LAYERS
    for row in range(32):
        below = torch.cat([images[:, channel, row] for channel in range(3)], dim=1)
        for number, cell in enumerate(cells):
            states[number] = cell(below, states[number])
            below = states[number][0]
    assert torch.allclose(ours(images), head(below), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp-mnist", "cnn-mnist", "vit-mnist", "lstm-mnist"])
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_small_networks_take_grey_and_colour(name, dataset):
    config = replace(RECIPES[name], dataset=dataset)
    images = torch.randn(3, config.channels, config.image_size, config.image_size)
    assert config.channels == (1 if dataset == "digits" else 3)
    assert build_model(config, 10)(images).shape == (3, 10)


@pytest.mark.parametrize("size", [28, 30, 33, 100])
def test_the_vision_transformer_sees_every_pixel(size):
    """Also where the patches do not fit: every pixel has a gradient."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, size, size, requires_grad=True)
    build_model(TrainConfig(model="vit", image_size=size), 10)(images)[0, 0].backward()
    assert (images.grad != 0).all()


def test_pooling_before_relu_changes_nothing():
    """Against the textbook's order, in which ReLU comes first: the same logits and gradients, bit for bit."""
    torch.manual_seed(0)
    ours = build_model(replace(RECIPES["cnn-mnist"], dropout=0.0), 10)
    textbook = copy.deepcopy(ours)
    for place in (1, 4):
        textbook[place], textbook[place + 1] = textbook[place + 1], textbook[place]
    assert [type(m).__name__ for m in textbook[:3]] == ["Conv2d", "ReLU", "MaxPool2d"]
    images, labels = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    logits = [model(images) for model in (ours, textbook)]
    assert torch.equal(*logits)
    for one in logits:
        nn.functional.cross_entropy(one, labels).backward()
    for first, second in zip(ours.parameters(), textbook.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)
