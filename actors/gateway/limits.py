"""How much one request may ask for. Everything is checked before any of it reaches the node."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Iterable

from sgl_actors.actors.cache.messages import LONGEST_PIN, PIN_NAME, PIN_NAME_WORDS, SHORTEST_PIN
from sgl_actors.errors import InvalidRequest

MAX_TOTAL_CHOICES = 1024
"""Most answers of one request, over all its prompts."""
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_IDS = 1024
MAX_BIASES = 4096
MAX_TOP_LOGPROBS = 100
MAX_CHAT_TOP_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_SALT = 256
MAX_PRIORITY = 1000
MAX_TOOLS = 128
"""Functions that a chat may be told of, as the OpenAI API has it."""
MAX_TOOLS_SIZE = 1 << 18
"""Characters of all of them as JSON."""
MAX_CALLS = 32
"""Calls in one answer that the grammar allows."""
MAX_GBNF = 1 << 16
MAX_GBNF_RULES = 512
"""Characters and rules of a grammar that is converted; converting takes time that grows with their product."""
MAX_CHOICES = 4096
MAX_STRUCTURES = 128

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")


def request_id(offered: str | None) -> str:
    """The trace id of a request: the client's label if it is a harmless one, else one of our own.

    A label of up to 128 letters, digits, ``._:-`` is taken; it names lines of the log and is never an address, a path,
    a metric label or the id of anything in the node.
    """
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"req-{secrets.token_hex(8)}"


def check_choices(n: int, prompts: int, most: int) -> None:
    """Refuse too many answers or prompts."""
    if n > most:
        raise InvalidRequest(f"n: {n} is over this node's limit of {most} ([gateway] max_choices)", param="n")
    if prompts > most:
        raise InvalidRequest(
            f"prompt: {prompts} prompts in one request, this node takes {most} ([gateway] max_choices)",
            param="prompt",
        )
    if n * prompts > MAX_TOTAL_CHOICES:
        raise InvalidRequest(
            f"n: {prompts} prompts with n={n} are over {MAX_TOTAL_CHOICES} answers", param="n"
        )


def check_stops(stop: str | list[str] | None, param: str = "stop") -> tuple[str, ...]:
    """Stop strings as a tuple; empty strings ask for nothing and are dropped."""
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(strings) > MAX_STOPS:
        raise InvalidRequest(f"{param}: {len(strings)} strings, at most {MAX_STOPS} are allowed", param=param)
    for text in strings:
        if len(text) > MAX_STOP_LENGTH:
            raise InvalidRequest(
                f"{param}: a string is longer than {MAX_STOP_LENGTH} characters", param=param
            )
    return tuple(text for text in strings if text)


def check_ids(ids: Iterable[int], vocabulary: int, param: str) -> None:
    """Refuse token ids that the model does not have."""
    for token in ids:
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"{param}: {token} is no token id of this model (0 to {vocabulary - 1})", param=param
            )


def check_salt(salt: str | None, param: str = "cache_salt") -> str:
    """A cache salt, "" for none; refuse one that is long or has control characters."""
    if salt is None:
        return ""
    if len(salt) > MAX_SALT:
        raise InvalidRequest(f"{param}: {len(salt)} characters, at most {MAX_SALT} are allowed", param=param)
    if any(unicodedata.category(character) == "Cc" for character in salt):
        raise InvalidRequest(f"{param}: it has control characters", param=param)
    return salt


def check_pin(ttl: float, name: str | None) -> None:
    """Refuse seconds or a name that no pin can have."""
    if not SHORTEST_PIN <= ttl <= LONGEST_PIN:
        raise InvalidRequest(
            f"ttl: {ttl:g} s is not {SHORTEST_PIN:g} to {LONGEST_PIN:.0f} seconds", param="ttl"
        )
    if name is not None and not re.fullmatch(PIN_NAME, name):
        raise InvalidRequest(f"name: {name[:80]!r} is not {PIN_NAME_WORDS}", param="name")


def one_salt(cache_salt: str | None, extra_key: str | None) -> str:
    """The salt of a request, checked; `extra_key` is SGLang's name for it."""
    salt, other = check_salt(cache_salt), check_salt(extra_key, "extra_key")
    if salt and other and salt != other:
        raise InvalidRequest(
            "extra_key: it is another name of cache_salt, give one of them", param="extra_key"
        )
    return salt or other


def check_length(values: int, most: int, param: str) -> None:
    """Refuse a list or object with too many entries."""
    if values > most:
        raise InvalidRequest(f"{param}: {values} entries, at most {most} are allowed", param=param)
