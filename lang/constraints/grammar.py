"""What decoding asks of a constraint: which tokens may come next, and where they lead.

There are two engines: `fsm_grammar`, a compressed finite state machine, and `llguidance_grammar`; `engines` chooses. Masks are numpy rows, so that
neither side of this seam knows of tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.int32]]
"""One bit per token id, 32 to a word, the lowest first: bit ``i % 32`` of word ``i // 32`` is set if token i may come next."""


def mask_words(size: int) -> int:
    """Words of a mask for `size` token ids."""
    return -(-size // 32)


class Declined(Exception):
    """The compressed FSM does not take this constraint; the text says why."""


class Forced(NamedTuple):
    """What every way to go on begins with.

    Attributes:
        data: its bytes; it may end inside of a character.
        over: nothing but an end token can follow.
    """

    data: bytes
    over: bool


class Grammar(Protocol):
    """One output under a constraint, as far as it has been written. One thread at a time may use it.

    Methods raise `InvalidRequest` when it cannot go on: a token that it does not allow, or a limit on its complexity. It is of no use then.
    """

    def mask_into(self, row: Mask) -> None:
        """Write into `row` (`mask_words` of the vocabulary, contiguous) which tokens may come next; does not move it.

        An end token may come where the output is complete, and nothing else where it is over. Also raises if no token of the vocabulary can come
        next.
        """

    def advance(self, token: int) -> None:
        """The output goes on with `token`."""

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""

    def copy(self) -> Grammar:
        """Another one in the same state, which moves by itself."""

    def matches(self, text: str) -> bool:
        """Whether `text`, as a whole, is an output that the constraint allows (wherever this one stands)."""

    def forced_text(self) -> str:
        """The text that every way to go on begins with, whole characters only; "" where there is a choice."""

    def forced(self) -> Forced:
        """The same in bytes, all of them, and whether the output is over behind it."""

    def crossings(self, head: bytes, forced: bytes) -> list[int]:
        """Where a token could begin that joins the end of forced text with what follows.

        Args:
            head: bytes before the place where this one stands.
            forced: what `forced` said.

        Returns:
            Ascending positions p in ``head + forced`` for which a token of the vocabulary begins with ``(head + forced)[p:]``, is longer, and may go on as
            the constraint allows behind `forced`. One too many costs time, one too few makes output that is not canonical.
        """

    @property
    def is_accepting(self) -> bool:
        """Whether the output is complete as it is."""

    @property
    def is_over(self) -> bool:
        """Whether it is complete and nothing but an end token can follow."""

    @property
    def weight(self) -> int:
        """Bytes that it and all its copies share, roughly."""
