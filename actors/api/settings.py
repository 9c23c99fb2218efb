"""An API's options, checked, and what of them a vendor is told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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
FILE: Final = "file:"


def read_options(given: Mapping[str, Any]) -> Options:
    """Options as node.toml has them.

    Raises:
        ConfigError: names the one that cannot be.
    """
    try:
        return checked_options(msgspec.convert(dict(given), Options))
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of an API's actor: {error}", param="options") from None


def checked_options(options: Options) -> Options:
    """The options; `ConfigError` for a number out of its range, or a model without a name."""
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
    return options


def settings_of(options: Options, key: str) -> Settings:
    """What a vendor is told."""
    names = set(Settings.__struct_fields__) - {"key"}
    return Settings(key=key, **{name: getattr(options, name) for name in names})


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
