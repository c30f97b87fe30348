"""What the ranks of a mesh, data x tensor, communicate in a step of a transformer in fp32: closed forms."""

from __future__ import annotations

from typing import NamedTuple

VALUE = 4  # bytes


class Traffic(NamedTuple):
    """What each rank of a group puts into its all-reduces, in one step."""

    collectives: float
    bytes: float


def tensor_traffic(images: int, tokens: int, width: int, blocks: int) -> Traffic:
    """In the tensor dimension: activations (images, tokens, width) and their gradients.

    One all-reduce in the forward pass and one in the backward pass of each half of a block (attention, MLP). `images`
    are those of the rank.
    """
    collectives = 2 * 2 * blocks
    return Traffic(collectives, collectives * images * tokens * width * VALUE)


def data_traffic(parameters: int, width: int, blocks: int, tensor_ranks: int) -> Traffic:
    """In the data dimension: the gradients that a rank has, in one all-reduce.

    Of a block's parameters these are split: query, key and value 3 width², their projection width², the MLP's layers
    4 width² each, and the first one's bias, 4 width. Of all others each rank has all.
    """
    split = blocks * (12 * width**2 + 4 * width)
    return Traffic(1, (parameters - split + split // tensor_ranks) * VALUE)
