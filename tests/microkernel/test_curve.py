"""Key files: what is written, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sgl_actors.actors.microkernel.curve import check_public, draw, read_public, read_secret, write_keys
from sgl_actors.errors import ConfigError


def test_a_pair_is_written_and_read_back(tmp_path: Path) -> None:
    """The secret half is for its owner alone, and the public half follows from it."""
    pair = write_keys("laptop", tmp_path)
    assert stat.S_IMODE((tmp_path / "laptop.key").stat().st_mode) == 0o600
    assert read_secret(tmp_path / "laptop.key") == pair
    assert read_public(tmp_path / "laptop.pub") == [check_public(pair.public)]
    assert pair.secret not in repr(pair)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A name that is taken, be it by one of the two files or by a link, is refused, and what is there stays."""
    pair = write_keys("laptop", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        write_keys("laptop", tmp_path)
    (tmp_path / "laptop.pub").unlink()
    with pytest.raises(ConfigError, match="is there already"):
        write_keys("laptop", tmp_path)
    assert read_secret(tmp_path / "laptop.key") == pair
    (tmp_path / "planted.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"planted\.key"):
        write_keys("planted", tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x", "x" * 65, "a\nb"])
def test_names_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    """A name is no path."""
    with pytest.raises(ConfigError, match="the name of a key"):
        write_keys(name, tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_secret_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    """Any right of group or others is too much."""
    write_keys("laptop", tmp_path)
    (tmp_path / "laptop.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret(tmp_path / "laptop.key")


@pytest.mark.parametrize("text", ["", "short", "x" * 41, " \n", "é" * 40, "~" * 40, "`" * 40])
def test_what_is_no_key_is_refused(text: str, tmp_path: Path) -> None:
    """In a file or as it is; the reason does not show a secret."""
    file = tmp_path / "some.key"
    file.write_text(text)
    file.chmod(0o600)
    for read in (read_secret, read_public):
        with pytest.raises(ConfigError, match="holds no key") as caught:
            read(file)
        assert not text.strip() or text not in caught.value.message
    with pytest.raises(ConfigError, match="40 characters of Z85"):
        check_public(text)


def test_two_public_keys_while_one_replaces_the_other(tmp_path: Path) -> None:
    """A file may hold both, one a line; of secrets there is one."""
    old, new = draw(), draw()
    file = tmp_path / "both"
    file.write_text(f"{old.public}\n{new.public}\n")
    assert read_public(file) == [old.public, new.public]
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="expected one key"):
        read_secret(file)
