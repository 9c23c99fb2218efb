"""Reading server-sent events in tests."""

from __future__ import annotations

from typing import Any

import msgspec


def events(body: str) -> list[Any]:
    """The decoded data of all events, ``"[DONE]"`` as it is; comments are left out. Asserts the exact framing."""
    assert body.endswith("\n\n")
    found: list[Any] = []
    for block in body.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        assert block.startswith("data: "), block
        assert "\n" not in block
        data = block.removeprefix("data: ")
        found.append(data if data == "[DONE]" else msgspec.json.decode(data))
    return found


def marked_events(body: str) -> list[tuple[str, Any]]:
    """The same of a stream that can be resumed: the id of each event and its data."""
    assert body.endswith("\n\n")
    found: list[tuple[str, Any]] = []
    for block in body.split("\n\n")[:-1]:
        mark, data = block.split("\n")
        assert mark.startswith("id: "), block
        found.append((mark.removeprefix("id: "), events(data + "\n\n")[0]))
    return found
