"""The verbs that change a running node: another class for an actor, and what node.toml says now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from sgl_actors.cli.cache_app import Config, Json, NodeName
from sgl_actors.errors import ConfigError, SwapFailed

MISPLACED = ".options]"
"""In the message of a swap that failed for an option, which a restart would refuse as well."""

if TYPE_CHECKING:
    from sgl_actors.actors.microkernel.messages import Swapped
    from sgl_actors.actors.node.messages import Reloaded


def swap(
    actor: Annotated[str, typer.Argument(help="Such as scheduler or worker/0; `ps` lists them.")],
    path: Annotated[
        str,
        typer.Option("--class", help="Where to import it from, or its name in a package.", metavar="CLASS"),
    ],
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="One of the class's own options; may be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of taking over what the actor holds.")
    ] = False,
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Put another class in the place of a running actor.

    CLASS is module:Class or the name of an entry point of the group sgl_actors.actors, as the node can import it. It takes over what the actor
    holds while mail waits; if it cannot, the actor goes on as it was. It holds until the node ends; for longer, name it in node.toml.
    """
    import asyncio

    from sgl_actors.cli.node import find, swap_actor

    given = _options(options or ())
    try:
        swapped = asyncio.run(swap_actor(find(node, config), actor, path, given, restart=restart))
    except SwapFailed as error:
        if not restart and MISPLACED not in error.message:
            raise SwapFailed(f"{error.message} (--restart starts the class anew instead)") from None
        raise
    show_swapped(actor, swapped, as_json=as_json, stream=sys.stdout)


def reload(node: NodeName = None, config: Config = None, as_json: Json = False) -> None:
    """Have the running node read its node.toml again.

    Actors whose class, options or section changed are swapped in place, the others are not touched. What can only change at the next
    start is said. The exit code is 1 if a change failed; that actor goes on as it was.
    """
    import asyncio

    from sgl_actors.cli.node import find, reload_node

    reloaded = asyncio.run(reload_node(find(node, config)))
    show_reloaded(reloaded, as_json=as_json, stream=sys.stdout)
    if reloaded.failed:
        raise typer.Exit(1)


def show_swapped(actor: str, swapped: Swapped, *, as_json: bool, stream: TextIO) -> None:
    """What took over, how, and for how long the actor stood still."""
    from sgl_actors.cli.show import write_json

    if as_json:
        row = {
            "actor": actor,
            "class": swapped.path,
            "in_place": swapped.in_place,
            "held": round(swapped.held, 6),
        }
        write_json(row, stream)
        return
    time = f"{swapped.held * 1000:.0f} ms" if swapped.held < 1 else f"{swapped.held:.1f} s"
    if swapped.in_place:
        print(f"{actor} is now {swapped.path}: swapped in place, held for {time}", file=stream)
    else:
        print(f"{actor} is now {swapped.path}: restarted, up again after {time}", file=stream)


def show_reloaded(reloaded: Reloaded, *, as_json: bool, stream: TextIO) -> None:
    """A line for each change, and what kept it from being made."""
    from sgl_actors.cli.show import write_json

    if as_json:
        write_json({"changes": reloaded.changes, "later": reloaded.later, "failed": reloaded.failed}, stream)
        return
    for line in reloaded.changes:
        print(line, file=stream)
    for line in reloaded.later:
        print(f"not yet: {line}", file=stream)
    for line in reloaded.failed:
        print(f"failed: {line}", file=stream)
    if not (reloaded.changes or reloaded.later or reloaded.failed):
        print("nothing has changed", file=stream)


def _options(given: list[str] | tuple[str, ...]) -> dict[str, str]:
    """``["weight=2"]`` as a mapping; a class converts the text itself."""
    options = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--option {one}: expected KEY=VALUE")
        options[key.strip()] = text.strip()
    return options
