"""An API's options and its key: what is refused, and that no key is shown."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_actors.actors.api.keys import find_key
from sgl_actors.actors.api.messages import Options
from sgl_actors.actors.api.settings import read_options
from sgl_actors.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"requests_per_minute": 0.5}, "0 \\(no limit\\) or a number from 1 on"),
        ({"concurrency": 0}, "concurrency: expected a number from 1 on, got 0"),
        ({"timeout": 0.0}, "timeout"),
        ({"tokens_per_minute": -1.0}, "tokens_per_minute"),
        ({"requests_per_minute": float("nan")}, "requests_per_minute"),
        ({"retries": "many"}, r"retries"),
        ({"model": ""}, "model"),
        ({"provider": "acme"}, "acme.*; provider is one of openai, anthropic, gemini"),
        ({"api": "complete"}, "complete.*; api is one of chat, completions"),
        ({"api_key": "sk-1"}, "api_key"),
        ({"prices": {"input": "free"}}, "prices"),
        ({"provider": "gemini", "base_url": "127.0.0.1:80"}, "base_url: expected an address"),
        ({"provider": "anthropic", "base_url": "http://h:port"}, "base_url"),
        ({"azure_endpoint": "ftp://h"}, "azure_endpoint"),
        ({"headers": {"a b": "c"}}, "headers: 'a b'"),
        ({"headers": {"a": "b\r\nc: d"}}, "headers: a"),
        ({"extra": {"top_a": float("inf")}}, "extra"),
        ({"extra": {"user": "\ud83d"}}, "extra: .*Unicode"),
        ({"prices": {"input": -1.0, "output": 1.0}}, "prices: input"),
        ({"prices": {"input": 1.0, "output": float("nan")}}, "prices: output"),
        ({"budget": {"cost": 1.0}}, "cost=1 needs prices, and nobody knows those of m"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    """A wrong option is named."""
    with pytest.raises(ConfigError, match=words):
        read_options({"provider": "openai", "model": "m", **options})


def test_where_a_key_comes_from(tmp_path: Any) -> None:
    """From a variable, a file, or the provider's own variable, which is for its own address only; "none" is none."""
    file = tmp_path / "key"
    file.write_text("from-file\n")
    found = {
        "OPENAI_API_KEY": "own",
        "GOOGLE_API_KEY": "google",
        "MINE": " mine ",
        "AZURE_OPENAI_API_KEY": "azure",
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({"key": "env:MINE"}, "mine"),
        ({"key": f"file:{file}"}, "from-file"),
        ({}, "own"),
        ({"provider": "gemini"}, "google"),
        ({"azure_endpoint": "https://x"}, "azure"),
        ({"base_url": "http://127.0.0.1"}, ""),
        ({"base_url": "http://127.0.0.1", "key": "env:OPENAI_API_KEY"}, "own"),
        ({"key": "none"}, ""),
    ]
    for options, key in cases:
        assert find_key(Options(**{"provider": "openai", "model": "m", **options}), found) == key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"openai needs a key: set \$OPENAI_API_KEY"),
        ({"provider": "anthropic"}, r"\$ANTHROPIC_API_KEY"),
        ({"provider": "gemini"}, r"\$GEMINI_API_KEY or \$GOOGLE_API_KEY"),
        ({"key": "env:GONE"}, r"no environment variable \$GONE"),
        ({"key": "file:/nowhere/key"}, "file /nowhere/key: FileNotFoundError"),
        ({"key": "sk-secret"}, "does not stand here itself"),
        ({"key": "env:"}, "does not stand here itself"),
        ({"key": "env:BAD"}, r"\$BAD: a key is visible ASCII"),
    ],
)
def test_a_key_that_is_not_there(options: dict[str, Any], words: str) -> None:
    """The message says where it was looked for, and never shows what is in its place."""
    made = Options(**{"provider": "openai", "model": "m", **options})
    with pytest.raises(ConfigError, match=words) as raised:
        find_key(made, {"BAD": "sk secret"})
    assert "secret" not in str(raised.value)


def test_numbers_may_come_as_text() -> None:
    """As `sgl-actors swap --option concurrency=4` has them."""
    given = {"provider": "openai", "model": "m", "concurrency": "4", "tokens_per_minute": "1e6"}
    options = read_options(given)
    assert (options.concurrency, options.tokens_per_minute) == (4, 1e6)
