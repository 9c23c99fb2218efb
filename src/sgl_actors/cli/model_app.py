"""The verbs of `sgl-actors model`: which models the running node serves."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from sgl_actors.cli.cache_app import Config, Json, NodeName
from sgl_actors.errors import ConfigError

model_app = typer.Typer(
    help="Load and unload models of the running node while it serves.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

LOAD_TIMEOUT = 1300.0
"""Seconds that loading a model, and draining the one that it replaces, may take."""


@model_app.command("ls")
def list_loaded(node: NodeName = None, config: Config = None, as_json: Json = False) -> None:
    """List the models that the node serves, the default one first."""
    from sgl_actors.actors.node.messages import ListModels

    _show(_ask(node, config, ListModels(), 10.0), as_json=as_json, stream=sys.stdout)


@model_app.command()
def load(
    path: Annotated[
        str, typer.Argument(help="A name (see `models`), .gguf file or folder.", metavar="MODEL")
    ],
    name: Annotated[str, typer.Option(help="What requests call it; without it, its own name.")] = "",
    replace: Annotated[
        bool,
        typer.Option("--replace", help="It becomes the default; the one that was finishes and is unloaded."),
    ] = False,
    memory: Annotated[
        str,
        typer.Option(help="Of its KV pool, such as 512MiB; without it, as `[cache] memory`.", metavar="SIZE"),
    ] = "",
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Load a model beside those that are there, and wait until it serves.

    Requests name it by their `model`; running ones are not touched.
    """
    from sgl_actors.actors.node.messages import LoadModel
    from sgl_actors.actors.node.validation import parse_size

    size = parse_size(memory) if memory else 0
    if size is None or (memory and size < 1):
        raise ConfigError(f'--memory {memory}: expected bytes or a size like "1GiB"')
    found = str(Path(path).absolute()) if Path(path).exists() else path
    ask = LoadModel(found, name, replace, size)
    _show(_ask(node, config, ask, LOAD_TIMEOUT), as_json=as_json, stream=sys.stdout)


@model_app.command()
def unload(
    name: Annotated[str, typer.Argument(help="As `model ls` shows it.")],
    drain: Annotated[float, typer.Option(min=0.0, help="Seconds that its running requests get.")] = 600.0,
    node: NodeName = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Unload a model once the requests that it has are done; new ones are refused meanwhile."""
    from sgl_actors.actors.node.messages import UnloadModel

    _show(_ask(node, config, UnloadModel(name, drain), drain + 60.0), as_json=as_json, stream=sys.stdout)


def _ask(node: str | None, config: Path | None, message: Any, timeout: float) -> Any:
    """Ask the node's root; the answer is `Models`."""
    import asyncio

    from sgl_actors.actors.node.messages import Models
    from sgl_actors.cli.node import ROOT, client, find

    record = find(node, config)

    async def ask() -> Models:
        async with client(record) as context:
            return await context.call(ROOT, message, Models, timeout=timeout)

    work: Coroutine[Any, Any, Models] = ask()
    return asyncio.run(work)


def _show(models: Any, *, as_json: bool, stream: TextIO) -> None:
    from sgl_actors.cli.show import table, write_json

    if as_json:
        write_json([{key: getattr(row, key) for key in row.__struct_fields__} for row in models.rows], stream)
        return
    names = [f"{row.name} (default)" if index == 0 else row.name for index, row in enumerate(models.rows)]
    cells = [
        (name, row.state, row.suffix or "-", row.path) for name, row in zip(names, models.rows, strict=True)
    ]
    table(("MODEL", "STATE", "SUFFIX", "PATH"), cells, stream)
