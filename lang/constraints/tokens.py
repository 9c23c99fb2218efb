"""A vocabulary as constraints see it: the bytes of every token, the ids of a text, and the trie of all tokens.

The bytes are read from the tokenizers library's JSON alone, so the compressed FSM needs no other engine: a token of a byte-level vocabulary is written in
GPT-2's alphabet of 256 characters, one of a byte-fallback vocabulary as text with ``▁`` for a space or as ``<0x0A>``. Special tokens and end tokens have no
bytes: no text stands for them; nor have added tokens in angle brackets (``<think>``), which are marks and no text, whatever the tokenizer calls
them. Other added tokens (runs of spaces, say) do: the tokenizers library takes them for their text, so canonical text is made of them. llguidance has the same rule.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import msgspec
import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.grammar import Mask, mask_words

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MARK = re.compile("<.*>", re.DOTALL)
_KEPT = 4096
"""Answers that are kept of each question about ends of text."""
_Index = np.ndarray[Any, np.dtype[np.intp]]


def packed(allowed: np.ndarray[Any, np.dtype[np.bool_]]) -> Mask:
    """The mask of [size] flags."""
    row = np.zeros(mask_words(len(allowed)), np.int32)
    bits = np.packbits(allowed, bitorder="little")
    row.view(np.uint8)[: len(bits)] = bits
    return row


@dataclass(frozen=True, eq=False)
class Trie:
    """The trie of all tokens, level by level, so that the children of a node are neighbours. Node 0 is the root.

    Attributes:
        byte: [nodes] uint8, the byte that leads to the node; 0 for the root.
        first: [nodes], its first child, whose siblings follow in the order of their bytes.
        count: [nodes], how many children it has.
        node: [size], where the token ends; ``len(byte)`` for ids without bytes.
    """

    byte: np.ndarray[Any, np.dtype[np.uint8]]
    first: _Index
    count: _Index
    node: _Index

    def __repr__(self) -> str:
        return f"<Trie {len(self.byte)} nodes>"


class Tokens:
    """See the module. Nothing in it changes, so any number of threads may use it.

    Attributes:
        tokenizer: the tokenizers library's JSON, without what it puts before a text: what is encoded here stands inside of one.
        raw: the bytes of each id, b"" for special tokens, end tokens and ids that no token has.
        eos_ids: end tokens.
        size: ids of a mask.
        sorted_ids: ids of the tokens with bytes, in the order of these.
        longest: bytes of the longest token, at least 1.
        single: a token for each byte that is a token by itself.
        following: the bytes that come behind a prefix in some token.
        end_mask: the mask (see `grammar.Mask`) of end tokens alone.
        trie: of all tokens with bytes.
    """

    def __init__(self, tokenizer: str, eos_ids: Sequence[int], size: int) -> None:
        """Set up the vocabulary, which takes some 0.3 s.

        Args:
            tokenizer: the tokenizers library's JSON.
            eos_ids: end tokens.
            size: ids of the model; at least those of the tokenizer.

        Raises:
            InvalidRequest: outputs over this vocabulary cannot be constrained: it has no end token, is broken, of an unknown kind, or larger than the model.
        """
        if not eos_ids:
            raise InvalidRequest(
                "constraint: this model has no end token, so no constrained output could end"
            )
        try:
            layout = msgspec.json.decode(tokenizer)
            self.tokenizer = _within_text(layout)
            self._tokenizer = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # noqa: BLE001 - a foreign edge: tokenizers raises plain Exception
            raise _unusable(str(error)) from None
        self._tokenizer.encode_special_tokens = True
        self.eos_ids = tuple(eos_ids)
        self.size = size
        self.raw = _raw(self._tokenizer, layout, size)
        for token in self.eos_ids:
            if not 0 <= token < size:
                raise _unusable(f"its end token {token} is none of {size} ids")
            self.raw[token] = b""
        self.sorted_ids = np.array(
            sorted(filter(self.raw.__getitem__, range(size)), key=self.raw.__getitem__), np.intp
        )
        self._texts = [self.raw[token] for token in self.sorted_ids]
        self.longest = max(map(len, self._texts), default=1)
        self.single = {
            text[0]: int(token)
            for text, token in zip(self._texts, self.sorted_ids, strict=True)
            if len(text) == 1
        }
        self.end_mask = packed(np.isin(np.arange(size), self.eos_ids))
        self.trie = _trie(self._texts, self.sorted_ids, size)
        self._beginnings = lru_cache(_KEPT)(self._find_beginnings)
        self.following = lru_cache(_KEPT)(self._find_following)

    def __repr__(self) -> str:
        return f"<Tokens {len(self._texts)} of {self.size}, end {self.eos_ids}>"

    def encode(self, data: bytes) -> list[int]:
        """Canonical ids of `data`, whole characters of UTF-8: those that the tokenizers library gives it inside of a text.

        Nothing is added, and special tokens and marks written in it are not recognised. Empty if the vocabulary cannot write it: a byte has no token, its
        normaliser makes another text of it, or it is no text.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return []
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        raw = self.raw
        return ids if b"".join([raw[token] for token in ids]) == data else []

    def starting_with(self, prefix: bytes) -> _Index:
        """Ids of the tokens whose bytes begin with `prefix`, in the order of their bytes."""
        low = bisect_left(self._texts, prefix)
        return self.sorted_ids[low : self._end(prefix, low)]

    def beginnings(self, data: bytes) -> tuple[int, ...]:
        """Ascending positions p of `data` for which some token begins with ``data[p:]`` and is longer."""
        tail = data[max(0, len(data) - self.longest + 1) :]
        skipped = len(data) - len(tail)
        return tuple([skipped + place for place in self._beginnings(tail)])

    def is_continued(self, prefix: bytes, follow: Callable[[bytes], int]) -> bool:
        """Whether some token begins with `prefix` and goes on in a way that is allowed.

        Args:
            prefix: at least one byte.
            follow: how many of some bytes are allowed behind `prefix`, one after the other.
        """
        return any(
            self._is_followed(prefix + byte, len(prefix), follow)
            for byte in self.following(prefix)
            if follow(byte)
        )

    def _is_followed(self, begun: bytes, skip: int, follow: Callable[[bytes], int]) -> bool:
        """Whether some token begins with `begun` and all of it behind `skip` is allowed."""
        texts, at = self._texts, bisect_left(self._texts, begun)
        end = self._end(begun, at)
        while at < end:
            token = texts[at]
            taken = follow(token[skip:])
            if taken == len(token) - skip:
                return True
            at = self._end(token[: skip + taken + 1], at)  # behind all that begin like this one up to there
        return False

    def _find_following(self, prefix: bytes) -> tuple[bytes, ...]:
        """The bytes that come behind `prefix` in some token."""
        texts, at, found = self._texts, bisect_left(self._texts, prefix), list[bytes]()
        end = self._end(prefix, at)
        while at < end:
            if byte := texts[at][len(prefix) : len(prefix) + 1]:
                found.append(byte)
                at = self._end(prefix + byte, at)
            else:
                at += 1
        return tuple(found)

    def _find_beginnings(self, tail: bytes) -> tuple[int, ...]:
        texts, found = self._texts, list[int]()
        for place in range(len(tail)):
            suffix = tail[place:]
            at = bisect_left(texts, suffix)
            while at < len(texts) and texts[at] == suffix:
                at += 1
            if at < len(texts) and texts[at].startswith(suffix):
                found.append(place)
        return tuple(found)

    def _end(self, prefix: bytes, low: int) -> int:
        """Behind the last of the sorted texts from `low` on that begins with `prefix`."""
        bare = prefix.rstrip(b"\xff")
        if not bare:
            return len(self._texts)
        return bisect_left(self._texts, bare[:-1] + bytes([bare[-1] + 1]), low)


def _raw(tokenizer: Tokenizer, layout: Any, size: int) -> list[bytes]:
    """Bytes of each id."""
    decoders = {part.get("type") for part in _parts(layout.get("decoder"), "decoders")}
    if not decoders & {"ByteLevel", "ByteFallback"}:
        raise _unusable("its decoder is neither byte-level nor byte-fallback, so its tokens have no bytes")
    read = _byte_level if "ByteLevel" in decoders else _byte_fallback
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if max(vocabulary.values(), default=0) >= size:
        raise _unusable(f"it has ids up to {max(vocabulary.values())}, the model {size} ids")
    raw = [b""] * size
    for text, token in vocabulary.items():
        if token not in added:
            raw[token] = read(text)
        elif not added[token].special:
            raw[token] = added[token].content.encode()
    return raw


def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for: itself, or, in order, those that are no printable character."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = {character: ord(character) for character in characters if ord(character) < 256}
    others = sorted(set(range(256)) - set(alphabet.values()))
    return alphabet | dict(zip(characters[len(alphabet) :], others, strict=True))


_ALPHABET = _alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:  # no byte-level token: its text stands for itself
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    match = _BYTE.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()


def _trie(texts: list[bytes], ids: _Index, size: int) -> Trie:
    """The trie of sorted texts."""
    lengths = np.fromiter(map(len, texts), np.intp, len(texts))
    offsets = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(texts), np.uint8)
    place = np.zeros(len(texts), np.intp)  # node of each text as far as it was read
    bytes_, parents, nodes = [np.zeros(1, np.uint8)], [np.zeros(0, np.intp)], 1
    for level in range(int(lengths.max(initial=0))):
        left = np.flatnonzero(lengths > level)
        parent, byte = place[left], data[offsets[left] + level]
        new = np.ones(len(left), np.bool_)
        new[1:] = (parent[1:] != parent[:-1]) | (byte[1:] != byte[:-1])
        place[left] = nodes - 1 + np.cumsum(new)
        bytes_.append(byte[new])
        parents.append(parent[new])
        nodes += int(new.sum())
    count = np.bincount(np.concatenate(parents), minlength=nodes)
    node = np.full(size, nodes, np.intp)
    node[ids] = place
    return Trie(np.concatenate(bytes_), 1 + np.cumsum(count) - count, count, node)


def _within_text(layout: Any) -> str:
    """The tokenizer as JSON, changed so that it puts no space before a text, as what it encodes stands inside of one, and that all marks are special."""
    changed = {**layout, "truncation": None, "padding": None}
    changed["added_tokens"] = [
        token | {"special": token["special"] or bool(_MARK.fullmatch(token["content"]))}
        for token in layout.get("added_tokens", ())
    ]
    changed["normalizer"] = _plain(layout.get("normalizer"), "normalizers")
    changed["pre_tokenizer"] = _plain(layout.get("pre_tokenizer"), "pretokenizers")
    return msgspec.json.encode(changed).decode()


def _plain(part: Any, key: str) -> Any:
    """A part of the tokenizer without what adds a space."""
    if not isinstance(part, dict) or part.get("type") == "Prepend":
        return None
    if part.get("type") == "Sequence":
        members = (_plain(member, key) for member in part.get(key, ()))
        return {**part, key: [member for member in members if member is not None]}
    if part.get("type") == "Metaspace":
        return {
            name: value for name, value in part.items() if name not in ("add_prefix_space", "str_rep")
        } | {"prepend_scheme": "never"}
    return part | {"add_prefix_space": False} if "add_prefix_space" in part else part


def _parts(layout: Any, key: str) -> list[dict[str, Any]]:
    """The members of a sequence, or the one thing itself."""
    if not isinstance(layout, dict):
        return []
    if layout.get("type") == "Sequence":
        return [part for member in layout.get(key, ()) for part in _parts(member, key)]
    return [cast("dict[str, Any]", layout)]


def _unusable(why: str) -> InvalidRequest:
    return InvalidRequest(f"constraint: this model's tokenizer cannot be used: {why}")
