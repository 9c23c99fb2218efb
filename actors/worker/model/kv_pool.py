"""The KV pool: keys and values of every token in the cache, addressed by slot numbers."""

from __future__ import annotations

import torch


class KvPool:
    """One allocation for all layers. Its memory is only claimed from the system page by page, as slots are first written.

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
        self._data = torch.empty(shape, dtype=dtype, device=device)
        self._layers = tuple(self._data[layer] for layer in range(layers))

    @property
    def data(self) -> torch.Tensor:
        """[layers, slots, 2, kv_heads, head_dim]."""
        return self._data

    def layer(self, index: int) -> torch.Tensor:
        """[slots, 2, kv_heads, head_dim]: keys at 0, values at 1 of the second dimension."""
        return self._layers[index]

    def write(self, index: int, slots: torch.Tensor, keys_values: torch.Tensor) -> None:
        """Store [tokens, 2, kv_heads, head_dim] in that layer at `slots` [tokens]."""
        self._layers[index].index_copy_(0, slots, keys_values)
