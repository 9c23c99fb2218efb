"""An API's options, checked, and what of them a vendor is told."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from sgl_actors.actors.api.messages import Options
from sgl_actors.errors import ConfigError, SglActorsError
from sgl_actors.lang.backends.capabilities import TEXT
from sgl_actors.lang.backends.vendor import Settings, Vendor
from sgl_actors.lang.trace import Prices

LEAST: Final = {
    "concurrency": 1,
    "queue": 0,
    "requests_per_minute": 0.0,
    "tokens_per_minute": 0.0,
    "retries": 0,
    "timeout": 0.001,
}
PER_MINUTE: Final = {"requests_per_minute", "tokens_per_minute"}
CHOICES: Final = {"provider": ("openai", "anthropic", "gemini"), "api": ("chat", "completions")}
FILE: Final = "file:"
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def read_options(given: Mapping[str, Any]) -> Options:
    """Options as node.toml has them.

    Raises:
        ConfigError: names the one that cannot be.
    """
    try:
        return checked_options(msgspec.convert(dict(given), Options, strict=False))
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of an API's actor: {error}{_choices(given)}", param="options") from None


def _choices(given: Mapping[str, Any]) -> str:
    """What may stand where none of it stands."""
    wrong = [
        f"{name} is one of {', '.join(ones)}"
        for name, ones in CHOICES.items()
        if given.get(name, ones[0]) not in ones
    ]
    return "".join(f"; {words}" for words in wrong)


def checked_options(options: Options) -> Options:
    """The options; `ConfigError` for a number out of its range, a model without a name, or a budget that nothing can be counted for."""
    if not options.model:
        raise ConfigError("model: an API's model has a name", param="model")
    for name in Prices.__struct_fields__ if options.prices else ():
        value = getattr(options.prices, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"prices: {name}: expected a number from 0 on, got {value:g}", param="prices")
    for name, least in LEAST.items():
        value = getattr(options, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{name}: expected a number from {least:g} on, got {value:g}", param=name)
        if name in PER_MINUTE and 0 < value < 1:
            raise ConfigError(
                f"{name}: expected 0 (no limit) or a number from 1 on, got {value:g}", param=name
            )
    _check_sent(options)
    if options.budget.cost is not None and options.prices is None:
        raise ConfigError(
            f"budget: cost={options.budget.cost:g} needs prices, and nobody knows those of {options.model}; say prices=, or write them into prices.toml",
            param="budget",
        )
    return options


def settings_of(options: Options, key: str) -> Settings:
    """What a vendor is told."""
    names = set(Settings.__struct_fields__) - {"key"}
    return Settings(key=key, **{name: getattr(options, name) for name in names})


def _check_sent(options: Options) -> None:
    """Raise `ConfigError` for what could never be sent: it would look like an answer that broke off. Values are not shown, they may be secret."""
    for name in ("base_url", "azure_endpoint"):
        try:
            url = urlsplit(getattr(options, name))
            wrong = bool(url.geturl()) and (
                url.scheme not in {"http", "https"} or not url.hostname or url.port == 0
            )
        except ValueError:
            wrong = True
        if wrong or not getattr(options, name).isprintable():
            raise ConfigError(f"{name}: expected an address, http://… or https://…", param=name)
    for header, value in options.headers.items():
        if not _HEADER.fullmatch(header):
            raise ConfigError(f"headers: {header!r:.80} is no name of a header", param="headers")
        if not (value.isascii() and value.isprintable()):
            raise ConfigError(f"headers: {header}: its value is no line of ASCII text", param="headers")
    try:
        json.dumps(options.extra, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        why = "a text is no Unicode" if isinstance(error, UnicodeError) else str(error)
        raise ConfigError(f"extra: it cannot be sent as JSON: {why}", param="extra") from None


async def template_of(options: Options, vendor: Vendor) -> tuple[str, dict[str, str]]:
    """Chat template and special tokens of a model that goes on with text: what the options say goes before what the server says.

    Raises:
        ConfigError: the template's file cannot be read.
    """
    own = options.chat_template
    if own.startswith(FILE):
        try:
            own = await asyncio.to_thread(Path(own.removeprefix(FILE)).expanduser().read_text)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"chat_template: {options.chat_template}: {type(error).__name__}", param="chat_template"
            ) from None
    if vendor.capabilities.continuation != TEXT:
        return own, {}
    try:
        source, tokens = await vendor.template()
    except SglActorsError:
        if not own:
            raise
        return own, {}
    return own or source, dict(tokens)
