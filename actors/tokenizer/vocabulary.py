"""A model's vocabulary: ids of a text, bytes of an id, the special tokens and what the checkpoint says about them.

Built by `gguf_vocabulary` or `folder_vocabulary`; `load` picks one. Neither torch nor transformers is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from sgl_actors.errors import CheckpointError, InvalidRequest


@dataclass(frozen=True)
class Vocabulary:
    """What is needed to go from text to ids and back.

    Attributes:
        tokenizer: the encoder; its own decoder is never used.
        raw: the bytes of each id, b"" for an id without a token. The text of ids is the UTF-8 decoding of their bytes.
        special: ids that `skip_special_tokens` leaves out.
        tokens: text of bos, eos, pad and unk as the chat template names them (``bos_token``, …), where they exist.
        eos_ids: ids that end a generation; empty if the checkpoint does not say.
        chat_template: jinja source, None without one.
        leading_space: the encoder puts a space before the text, so decoding a whole text takes it off again.
        seams: which positions of a text are always token borders, for `retokenise`.
    """

    tokenizer: Tokenizer = field(repr=False)
    raw: Sequence[bytes] = field(repr=False)
    special: frozenset[int] = field(repr=False)
    tokens: dict[str, str]
    eos_ids: tuple[int, ...]
    chat_template: str | None = field(repr=False)
    leading_space: bool = False
    seams: Seams = field(default_factory=lambda: Seams(frozenset(), at_space=False), repr=False)

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token, at least 1."""
        return max(1, max(map(len, self.raw), default=1))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of the whole text; special tokens written in it are recognised.

        A byte that no token stands for (the default model lacks those of unassigned characters) is left out, as the tokenizers library
        and llama.cpp do.

        Raises:
            InvalidRequest: the text holds surrogates, which no UTF-8 text does.
        """
        try:
            # the batch call lets go of the interpreter while it works, `encode` does not: a long text in a
            # thread would keep the actor's loop from answering
            (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise InvalidRequest(
                "the text is not valid Unicode: it holds surrogates", param="prompt"
            ) from None
        return encoding.ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text of a whole sequence of ids; bytes that are no UTF-8 become U+FFFD."""
        text = b"".join(self.bytes_of(ids, skip_special_tokens=skip_special_tokens)).decode(
            "utf-8", "replace"
        )
        return text[1:] if self.leading_space and text.startswith(" ") else text

    def bytes_of(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> list[bytes]:
        """Bytes of each id; an id that no token has (a padded output head) is empty."""
        size, special = len(self.raw), self.special if skip_special_tokens else frozenset()
        return [self.raw[i] if 0 <= i < size and i not in special else b"" for i in ids]


@dataclass(frozen=True)
class Seams:
    """Where a text can be cut so that its parts tokenise as in the whole; see `retokenise`.

    Attributes:
        tokens: ids of added tokens after which the rest of a text is always tokenised by itself.
        at_space: the same holds between a letter, digit or ASCII sign and a space.
    """

    tokens: frozenset[int]
    at_space: bool

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.tokens) or self.at_space


def load(path: str | Path) -> Vocabulary:
    """Load the vocabulary of a .gguf file or a Hugging Face folder.

    Raises:
        CheckpointError: it is missing, broken, or of a kind we would tokenise wrongly.
    """
    path = Path(path)
    if path.is_dir():
        from sgl_actors.actors.tokenizer.folder_vocabulary import load_folder

        return load_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .gguf file or a folder with tokenizer.json")
    from sgl_actors.actors.tokenizer.gguf_vocabulary import load_gguf

    return load_gguf(path)


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level BPE token stands for (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return alphabet


_ALPHABET = byte_alphabet()


def byte_level(token: str) -> bytes:
    """Bytes of a byte-level token; one with other characters (an added token) stands for its own text."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def seams(tokenizer: Tokenizer, *, known_split: bool) -> Seams:
    """Work out where texts of this tokenizer can be cut.

    Args:
        tokenizer: with all its added tokens.
        known_split: its normaliser never joins characters across a space, and its pre-tokenizer never puts
            a letter, digit or sign and a following space into one piece.
    """
    added = tokenizer.get_added_tokens_decoder()
    contents = [token.content for token in added.values()]
    closed = frozenset(
        index
        for index, token in added.items()
        if not (token.rstrip or token.single_word or token.normalized)
        and not any(token.content in other and token.content != other for other in contents)
    )
    swallows = any(token.rstrip or token.single_word for token in added.values())
    spans = any(before != " " and after == " " for text in contents for before, after in pairwise(text))
    return Seams(closed if known_split else frozenset(), at_space=known_split and not swallows and not spans)
