"""The KV pool: keys and values of every token in the cache, addressed by slot numbers."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable

import numpy as np
import torch

CLAIM_BYTES = 2 << 20
"""Of one layer, claimed at a time: a huge page."""
POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE."""


class KvPool:
    """One allocation for all layers. Its memory is only claimed from the system as slots are first written, in large pages where there are any.

    Slot s of page p at page size n is number p * n + s. Contents are undefined until written.
    """

    def __init__(
        self,
        *,
        layers: int,
        pages: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pages = pages
        self.page_size = page_size
        shape = (layers, pages * page_size, 2, kv_heads, head_dim)
        self._data = _empty(shape, dtype, device)
        self._layers = tuple(self._data[layer] for layer in range(layers))

    @property
    def data(self) -> torch.Tensor:
        """[layers, slots, 2, kv_heads, head_dim]."""
        return self._data

    def claim(self, going: Callable[[], bool]) -> None:
        """Have the system provide the memory ahead of its first use, from slot 0 on, for as long as `going()`; contents stay as they are.

        What is first written otherwise waits for it, as long as for a tenth of a token's computation and more on virtual machines. For a thread
        beside the one of the steps. Does nothing but on a CPU and a Linux from 5.14 on.
        """
        if self._data.device.type != "cpu" or not sys.platform.startswith("linux"):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        slot_bytes = self._layers[0][0].numel() * self._data.itemsize
        slots = max(1, CLAIM_BYTES // slot_bytes)
        for first in range(0, self.pages * self.page_size, slots):
            for layer in self._layers:
                part = layer[first : first + slots]
                begin = part.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
                size = part.data_ptr() + part.numel() * part.itemsize - begin
                if not going() or libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), POPULATE_WRITE):
                    return

    def layer(self, index: int) -> torch.Tensor:
        """[slots, 2, kv_heads, head_dim]: keys at 0, values at 1 of the second dimension."""
        return self._layers[index]


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty`, on a CPU in memory that numpy allocates: it asks for huge pages, and a first write of 4 KB at a time costs as much as what is written there."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    data = torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, np.uint8))
    return data.view(dtype).view(shape)
