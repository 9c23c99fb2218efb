"""A Hugging Face folder: config.json, generation_config.json, and one or many safetensors files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from sgl_actors.actors.worker.model.config import ModelConfig, config_from_hf, eos_ids
from sgl_actors.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the dtypes that are read."""


class FolderCheckpoint:
    """See `TensorSource`. Files stay memory-mapped; nothing is copied before `read`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)
        self.config: ModelConfig = self._read_config()
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        for file in self._list_files():
            self._open(file)

    def read(self, name: str) -> torch.Tensor:
        """See `TensorSource`."""
        file = self._file_of[name]
        try:
            tensor: torch.Tensor = self._files[file].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / file}: tensor {name!r} cannot be read: {error}") from None
        return tensor

    def read_quantized(self, name: str) -> None:
        """See `TensorSource`. Quantised tensors are none of the dtypes that are read."""

    def _read_config(self) -> ModelConfig:
        path = self.folder / "config.json"
        config = config_from_hf(_read_json(path), str(path))
        generation = self.folder / "generation_config.json"
        if generation.exists():
            more = eos_ids(_read_json(generation), str(generation))
            config = replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + more)))
        return config

    def _list_files(self) -> list[str]:
        if (self.folder / INDEX).exists():
            path = self.folder / INDEX
            weight_map = _read_json(path).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(file, str) for file in weight_map.values()
            ):
                raise CheckpointError(f"{path}: key 'weight_map' is missing or no object of file names")
            files = sorted(set(weight_map.values()))
            for file in files:
                if Path(file).name != file or not (self.folder / file).exists():
                    raise CheckpointError(f"{path}: names the file {file!r}, which is not in the folder")
            return files
        if (self.folder / SINGLE).exists():
            return [SINGLE]
        pickled = sorted(path.name for path in self.folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which is never loaded: convert it" if pickled else ""
        raise CheckpointError(f"{self.folder}: expected {SINGLE} or {INDEX}{hint}")

    def _open(self, file: str) -> None:
        path = self.folder / file
        try:
            opened: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from None
        self._files[file] = opened
        for name in list(opened.keys()):
            part = opened.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in DTYPE_BYTES:
                raise CheckpointError(
                    f"{path}: tensor {name!r} has dtype {dtype}, expected one of {', '.join(DTYPE_BYTES)}"
                )
            count = 1
            for size in part.get_shape():
                count *= size
            self.sizes[name] = count * DTYPE_BYTES[dtype]
            self._file_of[name] = file


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, expected a Hugging Face model folder") from None
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return data
