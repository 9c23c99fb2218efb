"""Unix sockets of a node: they lie in one folder of mode 0700, so that who can reach them is the user who runs the node.

Checked where a socket is bound and where one is connected to: an endpoint comes with every message, and only what lies in the
node's own folder, and is there, is ever connected to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sgl_actors.errors import ActorDown, ConfigError

PREFIX = "ipc://"

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path at most (`sun_path`)."""


def socket_path(endpoint: str) -> Path:
    """The socket of an ``ipc://`` endpoint; `ConfigError` for anything else, or a path that is too long."""
    path = endpoint.removeprefix(PREFIX)
    if not endpoint.startswith(PREFIX) or not path.startswith("/") or "\0" in path:
        raise ConfigError(f"expected ipc:///path, got {endpoint!r}")
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise ConfigError(
            f"{path}: too long for the path of a socket ({length} of {MAX_SOCKET_PATH} bytes); choose a shorter [node] runtime_dir"
        )
    return Path(path)


def check_folder(folder: Path) -> None:
    """Raise `ConfigError` unless `folder` is this user's and nobody else may enter it."""
    try:
        facts = folder.lstat()
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise ConfigError(f"{folder} is not a folder of this user: sockets of a node lie in one of their own")
    if facts.st_mode & 0o077:
        raise ConfigError(f"{folder} has mode {facts.st_mode & 0o777:04o}: others may enter it; chmod 700 it")


def check_peer(endpoint: str, folder: Path) -> None:
    """Raise `ActorDown` unless a socket of this user listens at `endpoint`, in `folder`."""
    try:
        path = socket_path(endpoint)
        facts = path.lstat()
    except (ConfigError, OSError, ValueError):
        raise ActorDown(f"nothing listens at {endpoint[:MAX_SOCKET_PATH]}") from None
    if path.parent != folder or not stat.S_ISSOCK(facts.st_mode) or facts.st_uid != os.getuid():
        raise ActorDown(f"{endpoint} is none of this node's sockets")
