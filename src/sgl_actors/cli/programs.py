"""`sgl-actors run`: a user's Python file as the main program."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

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
