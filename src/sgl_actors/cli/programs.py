"""`sgl-actors run`: a user's Python file as the main program."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from sgl_actors.errors import ConfigError, InvalidRequest


def use_node(url: str | None, name: str | None) -> None:
    """Have programs run on a node that runs, by its address or its name, unless they choose one themselves.

    Raises:
        ConfigError: both are given, or `url` is no address.
        NotReady: no node of that name runs.
    """
    import sgl_actors
    from sgl_actors.cli.node import find
    from sgl_actors.lang.threaded.config import global_config

    if url is not None and name is not None:
        raise ConfigError("--url and --node: one of them says where to run")
    connection = sgl_actors.connect(find(name, None).endpoint if url is None else url)
    global_config.default_backend = sgl_actors.Connection(connection.endpoint, connection.key)


APIS = ("openai", "openai-completions", "anthropic", "gemini")


def use_api(spec: str, url: str | None, key: str | None = None) -> None:
    """Have programs run on an API model, unless they choose where to run themselves.

    Args:
        spec: ``PROVIDER:MODEL``, with one of `APIS`.
        url: address of the API, if it is not the vendor's own.
        key: where its key stands: ``env:NAME``, ``file:PATH`` or ``none``.

    Raises:
        ConfigError: `spec` is none of these.
    """
    import sgl_actors
    from sgl_actors.lang.threaded.config import global_config

    provider, colon, model = spec.partition(":")
    if provider not in APIS or not colon or not model:
        raise ConfigError(f"--api: {spec!r} is no PROVIDER:MODEL; providers are {', '.join(APIS)}")
    more: dict[str, Any] = {"api": "completions"} if provider == "openai-completions" else {}
    make = {"anthropic": sgl_actors.Anthropic, "gemini": sgl_actors.Gemini}.get(provider, sgl_actors.OpenAI)

    def backend() -> Any:
        return make(model, base_url=url or "", key=key or "", **more)

    sgl_actors.set_default_backend(backend())
    global_config.default_backend = backend()


def run_file(file: Path, arguments: list[str]) -> int:
    """Run `file` as ``python file arguments`` would, in this process; return its exit code.

    Its own exceptions are shown with their traceback, as Python does; `sys.exit` in it ends us with its code.

    Raises:
        InvalidRequest: there is no such file.
    """
    if not file.is_file():
        raise InvalidRequest(f"{file}: no such file")
    sys.argv = [str(file), *arguments]
    sys.path.insert(0, str(file.parent.absolute()))
    runpy.run_path(str(file), run_name="__main__")
    return 0
