"""`[tenants]`: where keys come from, what is refused, and that no key is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from sgl_actors.actors.gateway.tenants import Tenants
from sgl_actors.actors.node.config import NodeConfig, load
from sgl_actors.errors import ConfigError

SECRET = "do-not-show-me"


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def configured(
    folder: Path,
    text: str,
    *,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> NodeConfig:
    path = folder / "node.toml"
    path.write_text(text)
    return load(path, flags=flags, environ=environ or {})


def key_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def problem(folder: Path, text: str, **options: Mapping[str, str]) -> str:
    """The one line of the error that loading raises, without the file's folder."""
    with pytest.raises(ConfigError) as caught:
        configured(folder, text, **options)
    (line,) = caught.value.message.splitlines()
    return line.replace(f"{folder}/", "")


def test_without_the_table_there_are_no_tenants(tmp_path: Path) -> None:
    """And so there is no authentication."""
    assert configured(tmp_path, "").tenants == {}


def test_keys_come_as_they_are_from_the_environment_and_from_files(tmp_path: Path) -> None:
    """A file may end with a newline, and counts from node.toml's folder; what is kept is the SHA-256."""
    key_file(tmp_path / "bob.key", b"key-of-bob\n")
    text = '[tenants]\nalice = "key-of-alice"\nbob = "file:bob.key"\n"c.d" = "env:KEY_OF_C"\n'
    config = configured(tmp_path, text, environ={"KEY_OF_C": "key-of-c"})
    assert config.tenants == {"alice": sha("key-of-alice"), "bob": sha("key-of-bob"), "c.d": sha("key-of-c")}


def test_flags_and_variables_set_keys_as_they_set_all_else(tmp_path: Path) -> None:
    """A flag beats the environment, which beats the file; a name with a dash is found by its spelling."""
    text = '[tenants]\nali-ce = "from-the-file"\nbob = "from-the-file2"\n'
    config = configured(
        tmp_path,
        text,
        environ={
            "SGL_ACTORS_TENANTS__ALI_CE": "from-the-environment",
            "SGL_ACTORS_TENANTS__BOB": "from-the-environment2",
            "SGL_ACTORS_TENANTS__NEW__ONE": "from-the-environment3",
        },
        flags={"tenants.bob": "from-a-flag", "tenants.d.e": "from-a-flag2"},
    )
    assert config.tenants == {
        "ali-ce": sha("from-the-environment"),
        "bob": sha("from-a-flag"),
        "new__one": sha("from-the-environment3"),
        "d.e": sha("from-a-flag2"),
    }


def test_no_key_is_kept_or_shown(tmp_path: Path) -> None:
    """Neither the configuration nor its rows hold a key; origins stay visible."""
    config = configured(tmp_path, f'[tenants]\nalice = "{SECRET}"\n')
    assert SECRET not in repr(config)
    assert SECRET not in msgspec.json.encode(config).decode()
    rows = [row for row in config.rows() if row[0].startswith("tenants")]
    assert rows == [("tenants.alice", "***", f"{tmp_path / 'node.toml'}:2")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[tenants]\n"a b" = "12345678"\n', "node.toml:2 tenants.a b: the name of a tenant is 1 to 64 letters, digits, dots, dashes and underscores"),
        ('[tenants]\n"" = "12345678"\n', "node.toml:2 tenants.: the name of a tenant is 1 to 64 letters, digits, dots, dashes and underscores"),
        (f'[tenants]\n{"x" * 65} = "12345678"\n', f"node.toml:2 tenants.{'x' * 65}: the name of a tenant is 1 to 64 letters, digits, dots, dashes and underscores"),
        ('[tenants]\n"a\\u001Fb" = "12345678"\n', "node.toml:1 tenants.a\x1fb: the name of a tenant is 1 to 64 letters, digits, dots, dashes and underscores"),
        ('[tenants]\na = "1234567"\n', "node.toml:2 tenants.a: expected a key of 8 to 256 visible ASCII characters without spaces"),
        ('[tenants]\na = "1234 5678"\n', "node.toml:2 tenants.a: expected a key of 8 to 256 visible ASCII characters without spaces"),
        ('[tenants]\na = "schlüssel"\n', "node.toml:2 tenants.a: expected a key of 8 to 256 visible ASCII characters without spaces"),
        ("[tenants]\na = 12345678\n", "node.toml:2 tenants.a: expected a text"),
        ('[tenants]\na.b = "12345678"\n', "node.toml:1 tenants.a: expected a text; a name with dots stands in quotes"),
        ('[tenants]\na = "env:NOBODY"\n', "node.toml:2 tenants.a: the environment has no variable 'NOBODY'"),
        ('[tenants]\na = "file:none"\n', "node.toml:2 tenants.a: none: No such file or directory"),
        ('[tenants]\na = "12345678"\nb = "12345678"\n', "node.toml:3 tenants.b: the same key as tenants.a"),
        ("[tenants]\n", "node.toml:1 tenants: nobody could use the node; add a name = key line, or leave the table out"),
        ("tenants = 3\n", "node.toml:1 tenants: expected a table [tenants] with name = key lines"),
        ("[tenant]\na = '12345678'\n", "node.toml:2 tenant.a: unknown section [tenant], did you mean tenants?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    """Names, keys, sources and doubles; a table without anybody would lock everybody out."""
    assert problem(tmp_path, text) == expected


def test_an_empty_table_can_be_filled_from_elsewhere(tmp_path: Path) -> None:
    """The file says that there is authentication, the environment has the keys."""
    config = configured(tmp_path, "[tenants]\n", environ={"SGL_ACTORS_TENANTS__A": "12345678"})
    assert config.tenants == {"a": sha("12345678")}


def test_a_broken_key_file_is_named(tmp_path: Path) -> None:
    """A key file that is no text."""
    key_file(tmp_path / "k", b"\xff\xfe12345678")
    assert problem(tmp_path, '[tenants]\na = "file:k"\n') == "node.toml:2 tenants.a: k: a key is ASCII text"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The message names the mode and what to do."""
    key_file(tmp_path / "k", b"12345678", mode)
    expected = f"node.toml:2 tenants.a: k: others may read or write it (mode {mode:04o}); chmod 600 it"
    assert problem(tmp_path, '[tenants]\na = "file:k"\n') == expected


def test_a_tenant_may_have_several_keys(tmp_path: Path) -> None:
    """A list from any sources; each key opens, and none is in what is kept."""
    key_file(tmp_path / "k", b"key-from-a-file\n")
    text = '[tenants]\na = ["key-of-old", "env:NEW", "file:k"]\n'
    config = configured(tmp_path, text, environ={"NEW": "key-of-new"})
    assert config.tenants["a"].split() == [sha("key-of-old"), sha("key-of-new"), sha("key-from-a-file")]
    tenants = Tenants(config.tenants)
    for key in ("key-of-old", "key-of-new", "key-from-a-file"):
        assert tenants.identify(Headers({"x-api-key": key})).name == "a"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[tenants]\na = []\n", "node.toml:2 tenants.a: expected 1 to 16 keys"),
        ('[tenants]\na = ["12345678", "12345678"]\n', "node.toml:2 tenants.a: the same key is there twice"),
        ('[tenants]\na = ["12345678", 3]\n', "node.toml:2 tenants.a: expected a text"),
        ('[tenants]\na = ["12345678"]\nb = ["87654321", "12345678"]\n', "node.toml:3 tenants.b: the same key as tenants.a"),
    ],
)  # fmt: skip
def test_mistakes_in_lists_of_keys(tmp_path: Path, text: str, expected: str) -> None:
    """None, doubles, other types, and a key that another tenant has."""
    assert problem(tmp_path, text) == expected


@given(st.text(st.characters(codec="utf-8"), min_size=4, max_size=300))
def test_no_message_holds_a_key(key: str) -> None:
    """Whatever is wrong with it, the reason does not show it, and what is right is kept as its SHA-256."""
    hidden = f"{SECRET}{key}"
    flags = {"tenants.a": hidden}
    if len(hidden) <= 256 and all("!" <= character <= "~" for character in hidden):
        assert load(None, flags=flags, environ={}).tenants == {"a": sha(hidden)}
        return
    with pytest.raises(ConfigError) as caught:
        load(None, flags=flags, environ={})
    assert SECRET not in caught.value.message
