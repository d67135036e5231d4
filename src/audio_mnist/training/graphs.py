"""A net's forward and backward pass as CUDA graphs: one launch each, not hundreds."""

import logging

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def capture(net: nn.Module, x: Tensor, dtype: torch.dtype | None) -> bool:
    """Let a net in training mode replay CUDA graphs; in evaluation it computes as before.

    Args:
        net: the net. Where it cannot be captured, it stays as it is.
        x: a batch of the shape that all training batches have.
        dtype: dtype of autocast; None without it.

    Returns:
        Whether it was captured.

    Source: `torch.cuda.make_graphed_callables`.
    """
    # the capture passes the batch several times, which moves running statistics and draws dropout
    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.cuda.get_rng_state(x.device)
    forward = net.forward
    try:
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
            torch.cuda.make_graphed_callables(net, (x.detach().clone(),))
    except Exception as error:  # a hook is an AssertionError, an operation that waits a RuntimeError
        log.warning("the net's step is no CUDA graph (%s); training continues without", str(error).partition("\n")[0])
        net.forward = forward
        return False
    finally:
        net.load_state_dict(before)
        net.zero_grad(set_to_none=True)
        torch.cuda.set_rng_state(drawn, x.device)
    return True
