"""The verbs of `sgl-actors cache`, and `sgl-actors scheduler`: what a running node keeps, and in which order it works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from sgl_actors.errors import ConfigError, InvalidRequest

Config = Annotated[Path | None, typer.Option("--config", "-c", help="The node's node.toml.", metavar="FILE")]
NodeName = Annotated[
    str | None, typer.Option("--node", help="Name of the node, if several run.", metavar="NAME")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Whose requests find it.", metavar="NAME")]
Salt = Annotated[str, typer.Option("--salt", help="The cache_salt of those requests.", metavar="TEXT")]

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_PIN = 30
"""Days."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")

cache_app = typer.Typer(
    help="Look at the prefix cache of the running node, and keep or drop what is in it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@cache_app.command("ls")
def list_cache(node: NodeName = None, config: Config = None, as_json: Json = False) -> None:
    """Show the pool, the hit rate, whose tokens are cached, and pins."""
    import asyncio

    from sgl_actors.cli.cache import show_summary, summarise
    from sgl_actors.cli.node import find

    show_summary(asyncio.run(summarise(find(node, config))), as_json=as_json, stream=sys.stdout)


@cache_app.command()
def pin(
    text: Annotated[str | None, typer.Argument(help="The prefix.", metavar="TEXT")] = None,
    file: Annotated[
        typer.FileText | None, typer.Option("--file", help="A text file; - is stdin.", metavar="FILE")
    ] = None,
    messages: Annotated[
        typer.FileText | None,
        typer.Option(
            "--messages", help='A chat: JSON [{"role": …, "content": …}]; - is stdin.', metavar="FILE"
        ),
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long: 90s, 10m, 2h, 1d.", metavar="TIME")] = "10m",
    name: Annotated[
        str, typer.Option(help="Pinning a name again replaces it; without one it is drawn.")
    ] = "",
    tenant: Tenant = "default",
    salt: Salt = "",
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Compute a prefix unless it is cached, and keep it from eviction for a while."""
    import asyncio

    from sgl_actors.cli.cache import pin_prefix, read_prefix, show_pinned
    from sgl_actors.cli.node import find

    if sum(given is not None for given in (text, file, messages)) != 1:
        raise ConfigError("cache pin: give one of TEXT, --file and --messages")
    check_pin_name(name)
    check_owner(tenant, salt)
    seconds = parse_seconds(ttl)
    try:
        prefix = read_prefix(
            text if file is None else file.read(), None if messages is None else messages.read()
        )
    except InvalidRequest as error:
        raise ConfigError(error.message) from None
    record = find(node, config)
    if record.tenants and tenant not in record.tenants:
        raise ConfigError(
            f"--tenant {tenant}: node {record.name!r} has no such tenant; it has {', '.join(record.tenants)}"
        )
    pinned = asyncio.run(pin_prefix(record, prefix, ttl=seconds, name=name, tenant=tenant, salt=salt))
    show_pinned(pinned, as_json=as_json, stream=sys.stdout)


@cache_app.command()
def unpin(
    name: Annotated[str, typer.Argument(help="As `cache ls` shows it.")],
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only that tenant's.", metavar="NAME")
    ] = None,
    salt: Annotated[
        str | None, typer.Option("--salt", help="Only that cache_salt's; '' is none.", metavar="TEXT")
    ] = None,
    node: NodeName = None,
    config: Config = None,
) -> None:
    """Let go of a pin; what it held can be evicted again.

    Where several are called so, --tenant and --salt say which.
    """
    import asyncio

    from sgl_actors.actors.node.banner import counted
    from sgl_actors.cli.cache import unpin_name
    from sgl_actors.cli.node import find

    check_owner(tenant, salt)
    gone = asyncio.run(unpin_name(find(node, config), name, tenant, salt))
    were = "was" if gone.held == 1 else "were"
    typer.echo(f"unpinned {name}, {counted(gone.held, 'token')} {were} held")


@cache_app.command()
def flush(node: NodeName = None, config: Config = None) -> None:
    """Empty the cache, but for pins. While requests run or wait it is refused."""
    import asyncio

    from sgl_actors.cli.cache import flush_cache
    from sgl_actors.cli.node import find

    typer.echo(f"flushed, {asyncio.run(flush_cache(find(node, config))):,} tokens are left")


@cache_app.command()
def export(
    tokens: Annotated[
        bool, typer.Option("--tokens", help="With token ids, that is, with what people asked.")
    ] = False,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Only that tenant's.", metavar="NAME")
    ] = None,
    salt: Salt = "",
    node: NodeName = None,
    config: Config = None,
) -> None:
    """Print everything cached as JSON lines, an edge of the tree each, parents first."""
    import asyncio

    from sgl_actors.cli.cache import export_lines
    from sgl_actors.cli.node import find

    if salt and tenant is None:
        raise ConfigError("--salt: say whose with --tenant")
    check_owner(tenant, salt)
    asyncio.run(
        export_lines(find(node, config), tenant, salt, with_tokens=tokens, write=sys.stdout.buffer.write)
    )
    sys.stdout.flush()


def scheduler(
    policy: Annotated[
        str | None, typer.Option(help="Order of admission: lpm, dfs-weight, fcfs or hrrn.")
    ] = None,
    overtake: Annotated[
        int | None,
        typer.Option(help="Uncached tokens of later requests that may go before a waiting one; 0: no limit."),
    ] = None,
    sharing: Annotated[
        bool | None,
        typer.Option("--sharing/--no-sharing", help="Wait for a prefix that is being computed."),
    ] = None,
    reuse: Annotated[bool | None, typer.Option("--reuse/--no-reuse", help="Use the cache.")] = None,
    stall: Annotated[
        float | None,
        typer.Option(help="Times that a step with prompt tokens may take of one without; 0: no limit."),
    ] = None,
    speculation: Annotated[
        bool | None,
        typer.Option("--speculation/--no-speculation", help="Guess tokens and check several at once."),
    ] = None,
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show in which order requests are admitted, or switch it while the node runs.

    A restart of the scheduler goes back to node.toml.
    """
    import asyncio

    from sgl_actors.cli.cache import configure, show_configuration
    from sgl_actors.cli.node import find

    changes = {
        "policy": policy,
        "overtake": overtake,
        "sharing": sharing,
        "reuse": reuse,
        "stall": stall,
        "speculation": speculation,
    }
    before, now = asyncio.run(configure(find(node, config), changes))
    show_configuration(before, now, as_json=as_json, stream=sys.stdout)


def check_pin_name(name: str) -> None:
    """Raise `ConfigError` for what cannot be a pin's name; "" has one drawn."""
    from sgl_actors.actors.cache.messages import PIN_NAME, PIN_NAME_WORDS

    if name and not re.fullmatch(PIN_NAME, name):
        raise ConfigError(f"--name {name[:80]!r}: expected {PIN_NAME_WORDS}")


def check_owner(tenant: str | None, salt: str | None) -> None:
    """Raise `ConfigError` for what cannot be a tenant's name or a salt; together they name a namespace of the cache."""
    from sgl_actors.actors.node.tenants import check_tenant
    from sgl_actors.lang.arguments import check_salt
    from sgl_actors.lang.errors import InvalidPrimitive

    if tenant is not None:
        try:
            check_tenant(tenant)
        except ConfigError as error:
            raise ConfigError(f"--tenant {tenant[:80]!r}: {error.message}") from None
    try:
        check_salt("--salt", salt or "")
    except InvalidPrimitive as error:
        raise ConfigError(error.message) from None


def parse_seconds(text: str) -> float:
    """Seconds of "90", "90s", "10m", "2h" or "1.5d"; `ConfigError` for anything else, below 1 second and above 30 days."""
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 1 <= seconds <= LONGEST_PIN * UNITS["d"]:
        raise ConfigError(
            f"--ttl {text[:80]!r}: expected a time such as 90s, 10m, 2h or 1d, from 1s to {LONGEST_PIN}d"
        )
    return seconds
