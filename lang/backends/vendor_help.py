"""What the vendors' files share: capabilities as told, a message's pieces, tools, and constraints as a schema of ``{"value": …}``."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from sgl_actors.actors.tokenizer.messages import ChatMessage
from sgl_actors.errors import ConfigError, InvalidRequest
from sgl_actors.lang.backends.capabilities import CONTINUATIONS, Capabilities
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, KINDS, REGEX, Constraint
from sgl_actors.lang.ir import Media

MAX_SAID: Final = 300
"""Characters of a provider's own words in a message."""


async def load_sdk(name: str, extra: str, title: str) -> ModuleType:
    """Import a vendor's SDK, in a thread.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return await asyncio.to_thread(importlib.import_module, name)
    except ImportError as error:
        raise ConfigError(
            f"{title} needs the package {name}, which cannot be imported ({error}): pip install 'sgl-actors[{extra}]'"
        ) from error


def overridden(capabilities: Capabilities, given: Mapping[str, Any], title: str) -> Capabilities:
    """Capabilities with what the user knows better.

    Raises:
        ConfigError: a name or a value has no meaning.
    """
    for name in given:
        if name not in Capabilities.__struct_fields__:
            raise ConfigError(
                f"{title}: capabilities: {name!r} is unknown; there are {', '.join(Capabilities.__struct_fields__)}",
                param="capabilities",
            )
    try:
        made = msgspec.convert(msgspec.to_builtins(capabilities) | dict(given), Capabilities)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{title}: capabilities: {error}", param="capabilities") from error
    if made.continuation not in CONTINUATIONS:
        raise ConfigError(
            f"{title}: capabilities: continuation is one of {', '.join(CONTINUATIONS)}, not {made.continuation!r}",
            param="capabilities",
        )
    if not set(made.constraints) <= set(KINDS):
        raise ConfigError(
            f"{title}: capabilities: constraints are of {', '.join(KINDS)}, not {', '.join(made.constraints)}",
            param="capabilities",
        )
    return made


def said(words: object, key: str) -> str:
    """A provider's words for a message: on one line, not too many, and without the key.

    Example:
        >>> said("wrong  key: sk-1234", "sk-1234")
        'wrong key: [key]'
    """
    text = " ".join(str(words).split())
    text = text.replace(key, "[key]") if key else text
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}…"


def plain_address(url: object) -> str:
    """An address for a message: without what may be secret in it.

    Example:
        >>> plain_address("http://ann:secret@127.0.0.1:80/v1?key=1")
        'http://127.0.0.1:80/v1'
    """
    found = urlsplit(str(url))
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"


def cause_of(error: Exception, key: str) -> Exception | None:
    """What an error is raised from: the SDK's own, unless that tells the key."""
    return None if key and key in str(error) else error


def seconds_of(text: object) -> float:
    """Seconds of a ``Retry-After`` header, or of a duration as "12.5s"; 0 for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*s?\s*", text) if isinstance(text, str) else None
    return float(found[1]) if found else 0.0


def as_base64(media: Media) -> str:
    """A medium's bytes."""
    return base64.b64encode(media.data).decode("ascii")


def data_url(media: Media) -> str:
    """A medium as ``data:image/png;base64,…``."""
    return f"data:{media.media_type};base64,{as_base64(media)}"


def pieces(message: ChatMessage) -> list[str | Media]:
    """A turn's text, divided where its media stand, and them; no empty texts.

    Example:
        >>> pieces(ChatMessage("user", "ab", media=((1, Media("image", b"", "image/png")),)))
        ['a', Media(kind='image', data=b'', media_type='image/png', frames=0), 'b']
    """
    found: list[str | Media] = []
    begin = 0
    for offset, media in message.media:
        found += [message.content[begin:offset], media]
        begin = offset
    found.append(message.content[begin:])
    return [one for one in found if one != ""]


class Function(NamedTuple):
    """A tool: its name, what it does, and the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


def functions(tools: str) -> list[Function]:
    """Tools in the OpenAI API's form, read; none of "".

    Raises:
        InvalidRequest: they are no such list.
    """
    try:
        listed = [one["function"] for one in json.loads(tools or "[]")]
        return [
            Function(
                one["name"],
                one.get("description") or "",
                one.get("parameters") or {"type": "object", "properties": {}},
            )
            for one in listed
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"tools are no list of functions: {error!r}", param="tools") from error


class Called(NamedTuple):
    """A call that a model made in an earlier turn."""

    id: str
    name: str
    arguments: dict[str, Any]


def calls(message: ChatMessage) -> list[Called]:
    """An assistant turn's calls, read; none of "".

    Raises:
        InvalidRequest: they are no such list.
    """
    try:
        listed = [(one.get("id") or "", one["function"]) for one in json.loads(message.tool_calls or "[]")]
        return [Called(name, one["name"], _arguments(one["arguments"])) for name, one in listed]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidRequest(f"tool_calls are no list of calls: {error!r}", param="messages") from error


def _arguments(given: Any) -> dict[str, Any]:
    return dict(json.loads(given) if isinstance(given, str) else given)


def tool_text(made: Iterable[tuple[str, object]]) -> str:
    """Names and arguments of called tools as a completion's text.

    Example:
        >>> tool_text([("weather", {"city": "Lima"})])
        '[{"tool": "weather", "arguments": {"city": "Lima"}}]'
    """
    return json.dumps(
        [{"tool": name, "arguments": arguments} for name, arguments in made], ensure_ascii=False
    )


def wraps(constraint: Constraint | None) -> bool:
    """Whether a constraint is asked for as ``{"value": …}``: what follows JSON schemas only writes no bare text."""
    return constraint is not None and constraint.kind in {REGEX, CHOICE}


def schema_of(constraint: Constraint) -> dict[str, Any]:
    """The JSON schema that has an API keep a constraint, see `wraps`.

    Raises:
        InvalidRequest: it is of a kind that no schema can say, or no JSON.
    """
    try:
        if constraint.kind == JSON_SCHEMA:
            return dict(json.loads(constraint.source))
        if constraint.kind == CHOICE:
            value: dict[str, Any] = {"type": "string", "enum": json.loads(constraint.source)}
        elif constraint.kind == REGEX:
            value = {"type": "string", "pattern": f"^(?:{constraint.source})$"}
        else:
            raise InvalidRequest(f"no JSON schema says what a {constraint.kind} does", param="constraint")
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{constraint.kind}: {error}", param="constraint") from error
    return {
        "type": "object",
        "properties": {"value": value},
        "required": ["value"],
        "additionalProperties": False,
    }


_BEGUN: Final = re.compile(
    r'\s*\{\s*"value"\s*:\s*("(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*)', re.DOTALL
)
_HIGH: Final = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}$")


def unwrapped(text: str) -> str:
    """As much of the value as stands in the beginning of ``{"value": "…"}``; of a longer beginning never less.

    Example:
        >>> unwrapped('{"value": "bl'), unwrapped('{"value": "blue"}'), unwrapped('{"val')
        ('bl', 'blue', '')
    """
    found = _BEGUN.match(text)
    if found is None:
        return ""
    value: str = json.loads(_HIGH.sub("", found[1]) + '"', strict=False)
    return value
