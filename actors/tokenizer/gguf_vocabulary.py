"""The vocabulary of a GGUF file with byte-level BPE.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) but does not hold it; readers have to know it. transformers drops
the name and splits digits and spaces wrongly for `smollm`, which no round trip shows. So a name that we do not know for
certain is refused. Source of the table: llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sgl_actors.actors.tokenizer.gguf_metadata import Value, read_metadata
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary, byte_level, seams
from sgl_actors.errors import CheckpointError

LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = {"gpt-2", "phi-2", "olmo", "jais", "mpt"}
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_LLAMA3 = {"llama3", "llama-v3", "llama-bpe"}
_QWEN2 = {"qwen2", "deepseek-r1-qwen"}

_CONTROL, _USER_DEFINED = 3, 4


def load_gguf(path: Path) -> Vocabulary:
    """Build the vocabulary from the file's metadata.

    Raises:
        CheckpointError: broken file, no vocabulary, a tokenizer other than byte-level BPE, or an unknown pre-tokenizer.
    """
    values = read_metadata(path, "tokenizer.")
    kind = values.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model is {kind!r}; byte-level BPE ('gpt2') is what can be read"
        )
    pre = str(values.get("tokenizer.ggml.pre", ""))
    tokens = _strings(path, values, "tokenizer.ggml.tokens")
    tokenizer = _byte_level_bpe(path, pre, tokens, _strings(path, values, "tokenizer.ggml.merges"))
    types = cast("list[int]", values.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    if len(types) != len(tokens):
        raise CheckpointError(f"{path}: {len(types)} token types for {len(tokens)} tokens")
    added = [i for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens(
        [AddedToken(tokens[i], special=types[i] == _CONTROL, normalized=False) for i in added]
    )
    named = _named_tokens(path, values, len(tokens))
    _add_begin_and_end(tokenizer, values, tokens, named)
    raw = [byte_level(token) for token in tokens]
    for i in added:
        raw[i] = tokens[i].encode()
    template = values.get("tokenizer.chat_template")
    return Vocabulary(
        tokenizer=tokenizer,
        raw=raw,
        special=frozenset(i for i, kind in enumerate(types) if kind == _CONTROL),
        tokens={f"{name}_token": tokens[i] for name, i in named.items()},
        eos_ids=tuple(sorted({i for name, i in named.items() if name in {"eos", "eot"}})),
        chat_template=template if isinstance(template, str) else None,
        seams=seams(tokenizer, known_split=True),
    )


def _strings(path: Path, values: dict[str, Value], key: str) -> list[str]:
    value = values.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise CheckpointError(f"{path}: {key} is missing; a byte-level BPE vocabulary needs it")
    return cast("list[str]", value)


def _byte_level_bpe(path: Path, pre: str, tokens: list[str], merges: list[str]) -> Tokenizer:
    """The tokenizer for a pre-tokenizer's name."""
    byte_level_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split: pre_tokenizers.PreTokenizer
    if pre in _GPT2:
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pre in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre in _LLAMA3 or pre in _QWEN2:
        regex = Regex(LLAMA3_SPLIT if pre in _LLAMA3 else QWEN2_SPLIT)
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(regex, "isolated"), byte_level_only])
    else:
        known = ", ".join(sorted(_GPT2 | _DIGITS | _LLAMA3 | _QWEN2))
        raise CheckpointError(
            f"{path}: unknown pre-tokenizer {pre!r} (tokenizer.ggml.pre); known are {known}"
        )
    pairs = [cast("tuple[str, str]", tuple(merge.split(" ", 1))) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in _LLAMA3))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise CheckpointError(f"{path}: vocabulary and merges do not fit: {error}") from None
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _named_tokens(path: Path, values: dict[str, Value], size: int) -> dict[str, int]:
    """Ids of bos, eos, eot, pad and unk, as far as the file names them."""
    keys = {"bos": "bos", "eos": "eos", "eot": "eot", "pad": "padding", "unk": "unknown"}
    named = {}
    for name, key in keys.items():
        value = values.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < size:
            raise CheckpointError(
                f"{path}: tokenizer.ggml.{key}_token_id is {value!r}, the vocabulary has {size} tokens"
            )
        named[name] = value
    return named


def _add_begin_and_end(
    tokenizer: Tokenizer, values: dict[str, Value], tokens: list[str], named: dict[str, int]
) -> None:
    """Install what `add_special_tokens` adds."""
    begin = [named["bos"]] if values.get("tokenizer.ggml.add_bos_token") and "bos" in named else []
    end = [named["eos"]] if values.get("tokenizer.ggml.add_eos_token") and "eos" in named else []
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(tokens[i] for i in begin), "$A", *(tokens[i] for i in end)],
            special_tokens=[(tokens[i], i) for i in {*begin, *end}],
        )
