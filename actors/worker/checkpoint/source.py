"""What an open checkpoint offers, whatever its file format: tensors by Hugging Face's names."""

from __future__ import annotations

from typing import Protocol

import torch

from sgl_actors.actors.worker.checkpoint.quantized import Quantized
from sgl_actors.actors.worker.model.config import ModelConfig


class TensorSource(Protocol):
    """An open checkpoint. Tensors may be read by several threads at once.

    Attributes:
        where: file or folder, for messages.
        config: what its configuration says.
        sizes: bytes of every tensor in the file, by Hugging Face name.
    """

    where: str
    config: ModelConfig
    sizes: dict[str, int]

    def read(self, name: str) -> torch.Tensor:
        """One tensor of `sizes`, in Hugging Face layout and any float dtype.

        Raises:
            CheckpointError: it cannot be decoded.
        """

    def read_quantized(self, name: str) -> Quantized | None:
        """The same values as `read`, as the codes that the file has; None if it keeps the tensor otherwise."""


__all__ = ["TensorSource"]
