"""Vocabularies of GGUF files and Hugging Face folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]  # transformers depends on it
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from sgl_actors.actors.tokenizer import vocabulary as vocabularies
from sgl_actors.actors.tokenizer.gguf_metadata import read_metadata
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary, byte_alphabet
from sgl_actors.errors import CheckpointError, InvalidRequest

PIECES = [
    *[
        "0",
        "1",
        "42",
        "2024",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "a",
        "Hello",
        "ing",
        "don't",
        "'s",
        ".",
        "!?",
        "_",
    ],
    *[
        "é",
        "e\u0301",
        "ß",
        "中",
        "日本",
        "😀",
        "👩\u200d👩\u200d👧",
        "²",
        "½",
        "Ⅷ",
        "०",
        "\u00a0",
        "\u2003",
        "\u200b",
        "ﬁ",
        "$",
        "{}",
    ],
    *["<|im_start|>", "<|im_end|>", "<|im", "    return", "x=1;"],
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=14).map("".join)
ids = st.lists(st.integers(0, 49_151), max_size=40)


class NaiveBpe:
    """llama.cpp's way for `smollm`, written down plainly: cut at special tokens, at digits, by GPT-2's pattern; then merge by rank."""

    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, path: Path) -> None:
        values: dict[str, Any] = read_metadata(path)
        tokens = values["tokenizer.ggml.tokens"]
        kinds = values["tokenizer.ggml.token_type"]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {
            tuple(merge.split(" ")): rank for rank, merge in enumerate(values["tokenizer.ggml.merges"])
        }
        special = [regex.escape(token) for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
        self.special = regex.compile("(" + "|".join(special) + ")")
        self.alphabet = {byte: character for character, byte in byte_alphabet().items()}

    def encode(self, text: str) -> list[int]:
        result = []
        for n, part in enumerate(self.special.split(text)):
            if n % 2:
                result.append(self.ids[part])
                continue
            for run in regex.findall(r"\p{N}|[^\p{N}]+", part):
                for word in self.pattern.findall(run):
                    symbols = [self.alphabet[byte] for byte in word.encode()]
                    result += self.merge([symbol for symbol in symbols if symbol in self.ids])
        return result

    def merge(self, symbols: list[str]) -> list[int]:
        while True:
            ranked = [(self.ranks.get(pair), n) for n, pair in enumerate(pairwise(symbols))]
            known = [(rank, n) for rank, n in ranked if rank is not None]
            if not known:
                return [self.ids[symbol] for symbol in symbols]  # all symbols are known, see `encode`
            _rank, n = min(known)
            symbols[n : n + 2] = [symbols[n] + symbols[n + 1]]


@pytest.fixture(scope="module")
def missing_bytes(vocabulary: Vocabulary) -> set[int]:
    """Bytes that the default model has no token for: some control characters, and beginnings of unassigned ones."""
    missing = {byte for byte in range(256) if bytes([byte]) not in set(vocabulary.raw)}
    assert missing.isdisjoint("é中😀\n\t".encode())
    return missing


@pytest.fixture(scope="module")
def naive(model_path: Path) -> NaiveBpe:
    return NaiveBpe(model_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_known_ids_of_the_default_model(vocabulary: Vocabulary, text: str, expected: list[int]) -> None:
    """Texts whose ids are known from other implementations of `smollm` encode to those."""
    assert vocabulary.encode(text) == expected


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_encoding_equals_a_naive_bpe(vocabulary: Vocabulary, naive: NaiveBpe, text: str) -> None:
    """Any text encodes as the plain rendering of the algorithm does, digits and spaces included."""
    assert vocabulary.encode(text) == naive.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_decoding_gives_the_text_back(vocabulary: Vocabulary, missing_bytes: set[int], text: str) -> None:
    """Decoding the ids of a text is the text, as far as its bytes are in the vocabulary."""
    assume(missing_bytes.isdisjoint(text.encode()))
    assert vocabulary.decode(vocabulary.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(ids=ids, skip=st.booleans())
def test_decoding_equals_the_librarys(vocabulary: Vocabulary, ids: list[int], skip: bool) -> None:
    """Any ids, also those that are no UTF-8 together, decode as the tokenizers library decodes them."""
    assert vocabulary.decode(ids, skip_special_tokens=skip) == vocabulary.tokenizer.decode(
        ids, skip_special_tokens=skip
    )


def test_facts_of_the_default_model(vocabulary: Vocabulary) -> None:
    """Size, end token, named tokens and template come from the file; nothing is added to a prompt."""
    assert (len(vocabulary), vocabulary.eos_ids) == (49_152, (2,))
    assert vocabulary.tokens["bos_token"] == "<|im_start|>"
    assert vocabulary.tokens["eos_token"] == "<|im_end|>"
    assert vocabulary.chat_template is not None
    assert vocabulary.special == frozenset(range(17))
    assert vocabulary.encode("a", add_special_tokens=True) == vocabulary.encode("a")


def test_starts_without_torch_and_transformers(model_path: Path) -> None:
    """Loading imports neither: they cost seconds."""
    code = (
        "import sys; from sgl_actors.actors.tokenizer import actor, vocabulary; vocabulary.load(sys.argv[1]);"
        "print([name for name in ('torch', 'transformers', 'gguf') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, model_path], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


def test_surrogates_are_refused(vocabulary: Vocabulary) -> None:
    """A string that no UTF-8 can write is the asker's error."""
    with pytest.raises(InvalidRequest, match="surrogates"):
        vocabulary.encode("a\ud800b")


def test_added_tokens_of_a_gguf_file(tiny: Vocabulary) -> None:
    """Control and user-defined tokens are recognised in a text; only control tokens are special; bos is added where the file says so."""
    assert tiny.encode("ab<s><tool>") == [256, 257, 259]
    assert tiny.decode([256, 257, 259], skip_special_tokens=True) == "ab<tool>"
    assert tiny.encode("ab", add_special_tokens=True) == [257, 256]


def test_an_id_without_a_token_is_empty(tiny: Vocabulary) -> None:
    """A model's output head may have more rows than there are tokens."""
    assert tiny.decode([5000, 256, -1]) == "ab"


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "gpt-2"])
def test_known_pre_tokenizers_differ_in_digits(write_gguf: Callable[..., Path], pre: str) -> None:
    """Each known pre-tokenizer cuts digits its own way."""
    vocabulary = vocabularies.load(write_gguf(pre=pre))
    pieces = [piece for piece, _span in vocabulary.tokenizer.pre_tokenizer.pre_tokenize_str("12345")]
    assert pieces == {"llama-bpe": ["123", "45"], "gpt-2": ["12345"]}.get(pre, ["1", "2", "3", "4", "5"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pre": "wobbly"}, "unknown pre-tokenizer 'wobbly'"),
        ({"pre": None}, "unknown pre-tokenizer ''"),
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"merges": ["a q q"]}, "do not fit"),
        ({"token_type": [1, 1]}, "2 token types for 260 tokens"),
        ({"eos_token_id": 260}, "eos_token_id is 260"),
    ],
)
def test_a_vocabulary_we_cannot_vouch_for_is_refused(
    write_gguf: Callable[..., Path], changes: dict[str, Any], says: str
) -> None:
    """The error names the file and what is wrong with it."""
    path = write_gguf(**changes)
    with pytest.raises(CheckpointError, match=says) as caught:
        vocabularies.load(path)
    assert str(path) in caught.value.message


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_broken_gguf_file_is_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, tiny_bytes: bytes, data: st.DataObject
) -> None:
    """A file that is cut off anywhere in its header says so instead of crashing."""
    cut = data.draw(st.integers(0, len(tiny_bytes) - 1))
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(tiny_bytes[:cut])
    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        vocabularies.load(path)


@pytest.fixture(scope="module")
def tiny_bytes(write_gguf: Callable[..., Path]) -> bytes:
    return write_gguf().read_bytes()


def test_another_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    """What is no GGUF file, or a version nobody knows, or not there at all, is named."""
    for content, says in ((b"PK\x03\x04" + bytes(60), "GGUF"), (b"GGUF\x01\0\0\0" + bytes(60), "version 1")):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            vocabularies.load(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="no such file"):
        vocabularies.load(tmp_path / "absent.gguf")


def write_folder(folder: Path, tokenizer: Tokenizer, **files: dict[str, Any]) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_gives_the_same_ids_as_the_gguf_file(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """The same tokenizer saved as tokenizer.json encodes, decodes and cuts alike; the files beside it are read."""
    folder = write_folder(
        tmp_path,
        vocabulary.tokenizer,
        tokenizer_config={
            "bos_token": {"content": "<|im_start|>"},
            "eos_token": "<|im_end|>",
            "pad_token": None,
            "chat_template": "old",
        },
        generation_config={"eos_token_id": [2, 0]},
    )
    (folder / "chat_template.jinja").write_text("new")
    loaded = vocabularies.load(folder)
    text = "Hello 123  <|im_start|>wörld 😀"
    assert loaded.encode(text) == vocabulary.encode(text)
    assert (loaded.raw, loaded.special, loaded.seams) == (
        vocabulary.raw,
        vocabulary.special,
        vocabulary.seams,
    )
    assert loaded.tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert (loaded.eos_ids, loaded.chat_template) == ((2, 0), "new")


def test_a_folder_without_generation_config(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """The end token comes from config.json, else from the tokenizer's own; of several templates the default one is taken."""
    templates = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    write_folder(
        tmp_path,
        vocabulary.tokenizer,
        tokenizer_config={"eos_token": "<|im_end|>", "chat_template": templates},
    )
    assert vocabularies.load(tmp_path).eos_ids == (2,)
    assert vocabularies.load(tmp_path).chat_template == "d"
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert vocabularies.load(tmp_path).eos_ids == (7,)


def test_a_byte_fallback_tokenizer(tmp_path: Path) -> None:
    """SentencePiece-like tokenizers have bytes per id too; a whole text loses the space put before it, an output does not."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    tokenizer = Tokenizer(
        models.BPE(
            {token: n for n, token in enumerate(tokens)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocabulary = vocabularies.load(write_folder(tmp_path, tokenizer))
    ids = vocabulary.encode("a aé")
    assert ids == [259, 259, 1 + 0xC3, 1 + 0xA9]
    assert vocabulary.decode(ids) == tokenizer.decode(ids) == "a aé"
    assert b"".join(vocabulary.bytes_of(ids)) == " a aé".encode()
    assert not vocabulary.seams.at_space
    assert not vocabulary.seams.tokens


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", "{", "expected a JSON object"),
        ("tokenizer.json", "[]", "found list"),
        ("tokenizer.json", '{"decoder": {"type": "ByteLevel"}}', "not a tokenizer"),
        ("tokenizer_config.json", "nonsense", "tokenizer_config.json"),
        ("generation_config.json", '{"eos_token_id": "two"}', "expected an integer"),
    ],
)
def test_a_broken_folder_is_a_checkpoint_error(
    vocabulary: Vocabulary, tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    """The error names the file."""
    write_folder(tmp_path, vocabulary.tokenizer)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=says):
        vocabularies.load(tmp_path)


def test_a_decoder_without_bytes_is_refused(tmp_path: Path) -> None:
    """WordPiece tokens have no bytes of their own; guessing them would garble texts."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="WordPiece"):
        vocabularies.load(write_folder(tmp_path, tokenizer))
