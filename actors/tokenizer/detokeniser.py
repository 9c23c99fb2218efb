"""Text of a growing sequence of ids, a whole character at a time."""

from __future__ import annotations

import codecs

from sgl_actors.actors.tokenizer.vocabulary import Vocabulary


class Detokeniser:
    """Incremental decoder of one output.

    After any ids, the text given out is what decoding the bytes so far gives, less the bytes of a last unfinished
    character. So it depends on the ids alone, not on how they were cut into calls, and a rebuild from the ids after a
    restart gives the same splits. With `finish` the whole equals `Vocabulary.decode` of the ids, as a continuation of some
    text (no leading space is taken off).
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True) -> None:
        self.vocabulary = vocabulary
        self.skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __repr__(self) -> str:
        return f"<Detokeniser holding {self._decoder.getstate()[0]!r}>"

    def feed(self, token_id: int) -> str:
        """The characters that this token completes; bytes that can begin no character come out as U+FFFD."""
        (raw,) = self.vocabulary.bytes_of((token_id,), skip_special_tokens=self.skip_special_tokens)
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """U+FFFD for an unfinished character, if there is one."""
        return self._decoder.decode(b"", final=True)
