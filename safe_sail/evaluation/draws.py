"""Random draws that belong to a name: what one part of a run draws depends on no other part."""

from zlib import crc32

import torch


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator for one feature, SAE or other part of a run, the same whatever else is drawn and when."""
    # torch's CPU generator keeps 32 bits of a seed only, so both go into one hash
    return torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
