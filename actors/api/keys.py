"""Where an API's key comes from. Keys stand in no file of ours, no message, no log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sgl_actors.actors.api.messages import Options
from sgl_actors.errors import ConfigError

VARIABLES: Final = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
}
"""Environment variables of the providers, the first one that is set counts."""
AZURE: Final = ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY")
NO_KEY: Final = "none"
FORMS: Final = 'key is "env:NAME", "file:PATH", "none", or "" for the provider\'s own variable'


def find_key(options: Options, environment: Mapping[str, str]) -> str:
    """The key that `options.key` means; "" for none.

    Without a word of where it is, it is the provider's own variable, and that only for the provider's own address: another `base_url` gets no key that it
    was not meant for.

    Raises:
        ConfigError: it is not there, is none, or is the key itself instead of its place.
    """
    kind, _, where = options.key.partition(":")
    if options.key == NO_KEY or (not options.key and options.base_url):
        return ""
    if not options.key:
        names = AZURE if options.azure_endpoint else VARIABLES[options.provider]
        found = next((environment[name] for name in names if environment.get(name)), None)
        if found is None:
            raise _wrong(f"{options.provider} needs a key: set ${' or $'.join(names)}; {FORMS}")
        return checked(found, f"${names[0]}")
    if kind == "env" and where:
        if not environment.get(where):
            raise _wrong(f"there is no environment variable ${where}")
        return checked(environment[where], f"${where}")
    if kind == "file" and where:
        try:
            return checked(Path(where).expanduser().read_text(), f"file {where}")
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(f"file {where}: {type(error).__name__}") from None
    raise _wrong(f"a key does not stand here itself; {FORMS}")


def checked(text: str, where: str) -> str:
    """A key without the white space around it; `ConfigError`, which does not show it, for what is none."""
    key = text.strip()
    if not key or not all("!" <= character <= "~" for character in key):
        raise _wrong(f"{where}: a key is visible ASCII without spaces")
    return key


def _wrong(why: str) -> ConfigError:
    return ConfigError(f"key: {why}", param="key")
