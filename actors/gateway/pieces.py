"""Texts and bytes of single tokens, as log probabilities show them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from sgl_actors.actors.gateway.upstream import Upstream
from sgl_actors.actors.worker.messages import TokenLogprob

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say; the OpenAI API does the same."""
NEAR = 64
"""Bytes within which a token is looked for behind text that its tokenizer has changed."""


class Pieces:
    """Asks the tokenizer for each token once; at most the vocabulary is kept."""

    def __init__(self, node: Upstream) -> None:
        self._node = node
        self._known: dict[int, tuple[str, bytes]] = {}

    async def load(self, logprobs: Iterable[TokenLogprob]) -> None:
        """Make every token of `logprobs`, alternatives included, known to the other methods."""
        wanted = {entry.token_id for entry in logprobs}
        wanted |= {token for entry in logprobs for token, _ in entry.top}
        missing = sorted(wanted - self._known.keys())
        if missing:
            found = await self._node.pieces(missing)
            self._known.update(zip(missing, zip(found.pieces, found.raw, strict=True), strict=True))

    def text(self, token: int) -> str:
        """The token's text; bytes that are no character by themselves appear as U+FFFD."""
        return self._known[token][0]

    def raw(self, token: int) -> bytes:
        """The token's bytes."""
        return self._known[token][1]

    def label(self, token: int) -> str:
        r"""Its text, or for a part of a character ``bytes:\xe2\x82``: unlike texts, labels tell such tokens apart."""
        text, raw = self._known[token]
        if "\ufffd" not in text:
            return text
        try:
            raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return text


class Offsets:
    """Where each token begins in the text, in characters; parts of a character begin where the character does.

    So a token's text is what stands between its offset and the next one's, and those texts add up to the whole.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def prompt(self, text: str, tokens: Iterable[bytes]) -> list[int]:
        """Offsets of the tokens of a prompt, which comes first.

        Tokens need not have the very bytes of the text: a tokenizer may put a space before it, compose its characters, or know no token for some.
        What it changed belongs to the last token before the next one that is found.
        """
        whole, at, offsets = text.encode(), 0, []
        for raw in tokens:
            start, end = _find(raw, whole, at)
            self.next(whole[at:start])
            offsets.append(self._length)
            self.next(whole[start:end])
            at = end
        self.next(whole[at:])
        return offsets

    def next(self, raw: bytes) -> int:
        """Offset of the next token, whose bytes are `raw`."""
        offset = self._length
        self._length += len(self._decoder.decode(raw))
        return offset


def _find(token: bytes, text: bytes, at: int) -> tuple[int, int]:
    """Where the token stands from `at` on, with or without the space before it; nowhere is at `at`."""
    for piece in (token, token.removeprefix(b" ")):
        start = text.find(piece, at, at + len(piece) + NEAR)
        if start >= 0:
            return start, start + len(piece)
    return at, at


def finite(logprob: float | None) -> float | None:
    """`logprob` as JSON can say it."""
    return None if logprob is None else max(logprob, LOWEST)
