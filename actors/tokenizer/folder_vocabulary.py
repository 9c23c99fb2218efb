"""The vocabulary of a Hugging Face folder: tokenizer.json, with tokenizer_config, generation_config and chat_template beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sgl_actors.actors.tokenizer.gguf_vocabulary import LLAMA3_SPLIT, QWEN2_SPLIT
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary, byte_level, seams
from sgl_actors.errors import CheckpointError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_folder(path: Path) -> Vocabulary:
    """Build the vocabulary from the folder's files.

    Raises:
        CheckpointError: tokenizer.json is missing, a file is no JSON of the expected shape, or the tokenizer's decoder is neither
            byte-level nor byte-fallback (its ids would not have bytes of their own).
    """
    file = path / "tokenizer.json"
    layout = _json(file, required=True)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise CheckpointError(f"{file}: not a tokenizer that can be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    decoders = [part.get("type") for part in _parts(layout.get("decoder"), "decoders")]
    if "ByteLevel" not in decoders and "ByteFallback" not in decoders:
        raise CheckpointError(
            f"{file}: decoder {decoders}; byte-level and byte-fallback tokenizers can be read"
        )
    byte_level_bpe = "ByteLevel" in decoders
    config = _json(path / "tokenizer_config.json")
    tokens = {
        name: content
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (content := _content(config.get(name))) is not None
    }
    return Vocabulary(
        tokenizer=tokenizer,
        raw=_raw(tokenizer, byte_level_bpe=byte_level_bpe),
        special=frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special),
        tokens=tokens,
        eos_ids=_eos_ids(path, tokenizer, tokens),
        chat_template=_chat_template(path, config),
        leading_space="Strip" in decoders,
        seams=seams(tokenizer, known_split=byte_level_bpe and _known_split(layout)),
    )


def _raw(tokenizer: Tokenizer, *, byte_level_bpe: bool) -> list[bytes]:
    """Bytes of each id."""
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    raw = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if i in added:
            raw[i] = added[i].content.encode()
        elif byte_level_bpe:
            raw[i] = byte_level(token)
        elif match := _BYTE.fullmatch(token):
            raw[i] = bytes([int(match[1], 16)])
        else:
            raw[i] = token.replace("▁", " ").encode()
    return raw


def _known_split(layout: dict[str, Any]) -> bool:
    """Whether normaliser and pre-tokenizer are among those whose borders at spaces we have checked."""
    normalizers = [part.get("type") for part in _parts(layout.get("normalizer"), "normalizers")]
    if any(kind != "NFC" for kind in normalizers):
        return False
    splits = False
    for part in _parts(layout.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "ByteLevel":
            if part.get("add_prefix_space"):
                return False
            splits = splits or bool(part.get("use_regex", True))
        elif part.get("type") == "Split":
            pattern = part.get("pattern", {}).get("Regex")
            if (
                pattern not in (LLAMA3_SPLIT, QWEN2_SPLIT)
                or part.get("behavior") != "Isolated"
                or part.get("invert")
            ):
                return False
            splits = True
        elif part.get("type") != "Digits":
            return False
    return splits


def _parts(layout: Any, key: str) -> list[dict[str, Any]]:
    """The members of a Sequence, or the one thing itself."""
    if not isinstance(layout, dict):
        return []
    if layout.get("type") == "Sequence":
        return [part for member in layout.get(key, []) for part in _parts(member, key)]
    return [layout]


def _eos_ids(path: Path, tokenizer: Tokenizer, tokens: dict[str, str]) -> tuple[int, ...]:
    """What ends a generation: generation_config.json, else config.json, else the tokenizer's eos token."""
    for name in ("generation_config.json", "config.json"):
        value = _json(path / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) for i in ids):
            raise CheckpointError(
                f"{path / name}: eos_token_id is {value!r}, expected an integer or a list of them"
            )
        if ids:
            return tuple(ids)
    eos = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    return () if eos is None else (eos,)


def _chat_template(path: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else what the JSON files hold; of several named ones, "default"."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file}: {error}") from None
    template = _json(path / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _content(token: Any) -> str | None:
    """Text of a token that is written as a string or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _json(file: Path, *, required: bool = False) -> dict[str, Any]:
    """The object in a file; {} where it is missing and not required."""
    if not file.is_file() and not required:
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: expected a JSON object: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value
