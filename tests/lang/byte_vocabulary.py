"""A tokenizer whose tokens are bytes, so that any text can be written token by token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sgl_actors.lang.constraints.engines import Engines
from sgl_actors.lang.constraints.llguidance_grammar import LlguidanceCompiler

EOS = 256
SIZE = 264
"""Ids of a model with it: some rows of its output head are nobody's."""

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_BYTES = {byte: index for index, byte in enumerate(_ALPHABET)}


def byte_tokenizer() -> Tokenizer:
    """256 bytes and an end token, 256."""
    tokenizer = Tokenizer(models.BPE(dict(_BYTES), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def byte_compiler() -> LlguidanceCompiler:
    return LlguidanceCompiler(byte_tokenizer().to_str(), [EOS], SIZE)


def byte_engines(engine: str = "auto") -> Engines:
    """Both engines over this vocabulary."""
    return Engines(byte_tokenizer().to_str(), [EOS], SIZE, engine)


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text).ids
    return ids


def text_of(ids: Sequence[int]) -> str:
    text: str = byte_tokenizer().decode([token for token in ids if token < EOS])
    return text
