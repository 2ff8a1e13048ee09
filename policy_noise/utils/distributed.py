"""Data-parallel training."""

import torch.distributed as dist

__all__ = ["is_distributed"]


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
