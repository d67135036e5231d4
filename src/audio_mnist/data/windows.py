"""Windows of a fixed length around clips, as tensors."""

from torch import Tensor, nn


def middle(x: Tensor, length: int) -> Tensor:
    """Return the middle `length` samples, with zeros on both sides where there are fewer.

    Shape: (..., T) -> (..., length).

    >>> import torch
    >>> middle(torch.tensor([1.0, 2.0, 3.0]), 5)
    tensor([0., 1., 2., 3., 0.])
    """
    spare = x.shape[-1] - length
    return nn.functional.pad(x, (-(spare // 2), spare // 2 - spare))
