"""The traffic of a mesh against sums by hand; tests/labs/test_mesh_training.py has real steps."""

import pytest
from helper_plots import finding

from ddp_workbook.analysis.mesh import Traffic, data_traffic, tensor_traffic
from ddp_workbook.analysis.plots_mesh import mesh_map


def test_tensor_ranks_exchange_activations():
    """One block: attention and MLP, forward and backward; 3 images of 5 tokens of 2 values of 4 bytes."""
    assert tensor_traffic(3, 5, 2, blocks=1) == (4, 4 * 3 * 5 * 2 * 4)


def test_data_ranks_exchange_the_gradients_that_they_have():
    """Width 2: rows of q, k, v 6 x 2, projection 2 x 2, MLP 8 x 2 and 2 x 8, 8 biases; 100 other values are whole."""
    split = 12 + 4 + 16 + 16 + 8
    assert data_traffic(100 + split, 2, blocks=1, tensor_ranks=1) == (1, 4 * (100 + split))
    assert data_traffic(100 + split, 2, blocks=1, tensor_ranks=2) == (1, 4 * (100 + split // 2))
    assert data_traffic(100 + 3 * split, 2, blocks=3, tensor_ranks=4) == (1, 4 * (100 + 3 * split // 4))


def test_the_map_says_what_was_found():
    tensor, data = Traffic(16, 3 * 2**20), Traffic(1, 2**20)
    figure = mesh_map({(0, 1): tensor, (2, 3): tensor, (0, 2): data, (1, 3): data}, {"tensor": tensor, "data": tensor})
    assert finding(figure) == (
        "A mesh of 2 × 2 ranks: in a step a tensor pair meets 16 times and exchanges 3.00 MiB, a data pair once and "
        "exchanges 1.00 MiB; ranks 0 and 3, and 1 and 2, never talk"
    )
    texts = [text.get_text().replace("\u00a0", " ").splitlines() for text in figure.axes[0].texts]
    assert texts.count(["tensor pair", "16 all-reduces, 3.00 MiB", "(predicted: 16, 3.00 MiB)"]) == 2
    assert texts.count(["data pair", "1 all-reduce, 1.00 MiB", "(predicted: 16, 3.00 MiB)"]) == 2


@pytest.mark.parametrize("ranks", [(0, 3), (0, 1, 2, 3)])
def test_the_map_has_no_place_for_other_groups(ranks):
    with pytest.raises(ValueError, match="are no"):
        mesh_map({ranks: Traffic(1, 8)}, dict.fromkeys(("tensor", "data"), Traffic(1, 8)))
