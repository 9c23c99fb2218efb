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
from sgl_actors.errors import InvalidRequest


def retokenise(
    vocabulary: Vocabulary,
    old_ids: Sequence[int],
    new_text: str,
    *,
    canonical: int = 0,
    old_bytes: bytes | None = None,
) -> tuple[int, list[int]]:
    """Return (keep, new_ids) so that ``old_ids[:keep] + new_ids == vocabulary.encode(new_text)``, with the largest `keep`.

    Args:
        vocabulary: whose ids they are.
        old_ids: ids in use so far; whatever a model has sampled, not necessarily canonical.
        new_text: the whole text now: longer than before, shorter (a stop string was trimmed), or another one.
        canonical: how many leading `old_ids` are known to be ``vocabulary.encode`` of their text, either all of a text's ids or a
            leading part of them. 0 is always right, and encodes everything.
        old_bytes: the bytes of those, from a caller who has them; else they are looked up.

    Raises:
        InvalidRequest: the text holds surrogates, which no UTF-8 text does.
    """
    safe, position = 0, 0
    if canonical and vocabulary.seams:
        old = b"".join(vocabulary.bytes_of(old_ids[:canonical])) if old_bytes is None else old_bytes
        new = utf8(new_text)
        safe, position = _last_seam(vocabulary, old_ids, canonical, old, new)
        new_text = new[position:].decode() if position else new_text
    fresh = vocabulary.encode(new_text)
    common = 0
    for old_id, new_id in zip(old_ids[safe:], fresh, strict=False):
        if old_id != new_id:
            break
        common += 1
    return safe + common, fresh[common:]


def shared(one: bytes, two: bytes) -> int:
    """Length of the longest common beginning; a few comparisons of memory, whatever the length."""
    low, high = 0, min(len(one), len(two))
    if one[:high] == two[:high]:
        return high
    while high - low > 1:  # they agree in the first `low` bytes, and not in the first `high`
        middle = (low + high) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle
    return low


def utf8(text: str) -> bytes:
    """A text's bytes; `InvalidRequest` if it holds surrogates, which no UTF-8 text does."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the text is not valid Unicode: it holds surrogates", param="prompt") from None


def _last_seam(
    vocabulary: Vocabulary, old_ids: Sequence[int], canonical: int, old: bytes, new: bytes
) -> tuple[int, int]:
    """(number of ids, number of bytes) before the last seam that both texts have; looked for from the end of the old one."""
    agree, raw, seams = shared(old, new), vocabulary.raw, vocabulary.seams
    count, position = canonical, len(old)
    while position > agree:
        count -= 1
        position -= len(raw[old_ids[count]])
    while count > 0:
        if old_ids[count - 1] in seams.tokens:
            return count, position
        # The old text needs the seam too: a space there, or its end. Of ids that are not canonical nothing is known.
        at_border = old.startswith(b" ", position) if count < canonical else count == len(old_ids)
        if at_border and seams.at_space and new.startswith(b" ", position) and _ends_in_word(new, position):
            return count, position
        count -= 1
        position -= len(raw[old_ids[count]])
    return 0, 0


def _ends_in_word(data: bytes, position: int) -> bool:
    """Whether the character before `position` is a letter, a digit or an ASCII sign."""
    start = position - 1
    while start > 0 and data[start] & 0xC0 == 0x80:
        start -= 1
    character = data[start:position].decode("utf-8", "replace")
    return character.isalnum() or "!" <= character <= "~"
