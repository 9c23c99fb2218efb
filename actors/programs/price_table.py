"""The user's table of prices: what a million tokens of each model cost."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from sgl_actors.errors import ConfigError
from sgl_actors.lang.trace import Prices

FILE: Final = Path("sgl-actors", "prices.toml")


def price_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where it is: ``$XDG_CONFIG_HOME/sgl-actors/prices.toml``, by default under ``~/.config``."""
    folder = environment.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / FILE


def prices_of(model: str, path: Path | None = None) -> Prices | None:
    """Prices of a model as the table has them; None if it has none, or there is no table.

    Raises:
        ConfigError: the table cannot be read, or an entry of it, whichever model's, has no meaning.
    """
    path = price_file() if path is None else path
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return {name: _entry(path, name, entry) for name, entry in table.items()}.get(model)


def _entry(path: Path, name: str, entry: object) -> Prices:
    try:
        prices = msgspec.convert(entry, Prices)
    except msgspec.ValidationError as error:
        raise ConfigError(f'{path} ["{name}"]: {error}') from None
    unknown = set(entry).difference(Prices.__struct_fields__) if isinstance(entry, dict) else set()
    for key in sorted(unknown):
        raise ConfigError(f'{path} ["{name}"] {key}: unknown; there are input, cached, output')
    for key in Prices.__struct_fields__:
        value = getattr(prices, key)
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f'{path} ["{name}"] {key}: expected a number from 0 on, got {value}')
    return prices
