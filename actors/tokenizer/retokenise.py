r"""Canonical ids of a text that grew from one whose ids are known, without encoding all of it again.

The ids of a text are those of the whole text. They can be computed in two parts only where every tokenisation has a border,
whatever stands on either side. Two such **seams** are used (`Vocabulary.seams` says which a vocabulary has):

1. after an added token that is no part of a longer one and swallows no space after itself: the text is cut at added
   tokens before anything else happens;
2. between a letter, digit or ASCII sign and a following space: no pre-tokenizer we know joins them, none looks back, and
   the one that looks ahead (``\s+(?!\S)``) only does so after white space.

Everything behind the last seam that the old and the new text share is encoded anew. Where a vocabulary has no seams
(a space is put before each text, an unknown pre-tokenizer), that is all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sgl_actors.actors.tokenizer.vocabulary import Vocabulary


def retokenise(
    vocabulary: Vocabulary, old_ids: Sequence[int], new_text: str, *, canonical: int = 0
) -> tuple[int, list[int]]:
    """Return (keep, new_ids) so that ``old_ids[:keep] + new_ids == vocabulary.encode(new_text)``, with the largest `keep`.

    Args:
        vocabulary: whose ids they are.
        old_ids: ids in use so far; whatever a model has sampled, not necessarily canonical.
        new_text: the whole text now: longer than before, shorter (a stop string was trimmed), or another one.
        canonical: how many leading `old_ids` are known to be ``vocabulary.encode`` of their text, either all of a text's ids or a
            leading part of them. 0 is always right, and encodes everything.
    """
    safe, position = _last_seam(vocabulary, old_ids, new_text, canonical)
    fresh = vocabulary.encode(new_text.encode()[position:].decode() if position else new_text)
    common = 0
    for old, new in zip(old_ids[safe:], fresh, strict=False):
        if old != new:
            break
        common += 1
    return safe + common, fresh[common:]


def _last_seam(
    vocabulary: Vocabulary, old_ids: Sequence[int], new_text: str, canonical: int
) -> tuple[int, int]:
    """(number of ids, number of bytes) before the last seam that both texts have."""
    if not canonical or not (vocabulary.seams.tokens or vocabulary.seams.at_space):
        return 0, 0
    pieces = vocabulary.bytes_of(old_ids[:canonical])
    data = new_text.encode()
    agree, position = 0, 0
    for piece in pieces:
        if not data.startswith(piece, position):
            break
        position += len(piece)
        agree += 1
    for count in range(agree, 0, -1):
        if old_ids[count - 1] in vocabulary.seams.tokens:
            return count, position
        if vocabulary.seams.at_space and data.startswith(b" ", position) and _ends_in_word(data, position):
            # The old text needs the seam too: a space there, or its end. Of ids that are not canonical nothing is known.
            if count < len(pieces) and pieces[count].startswith(b" "):
                return count, position
            if count == len(old_ids):
                return count, position
        position -= len(pieces[count - 1])
    return 0, 0


def _ends_in_word(data: bytes, position: int) -> bool:
    """Whether the character before `position` is a letter, a digit or an ASCII sign."""
    start = position - 1
    while start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    character = data[start:position].decode("utf-8", "replace")
    return character.isalnum() or "!" <= character <= "~"
