"""`[tenants]` of node.toml: who may use the node over HTTP, and by which key.

A key is given as it is, as ``"env:VARIABLE"`` or as ``"file:path"``, where the file may be read by its owner only; a list has several keys of one tenant,
so that one can be taken out of use while the next is in use already. Keys are read once, and what goes on from here, into the configuration and to the
gateway, is their SHA-256: nothing can print or log a key that it does not have.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_actors.errors import ConfigError

SHORTEST, LONGEST = 8, 256
"""Characters of a key."""
MOST = 16
"""Keys of one tenant."""
ENVIRONMENT, FILE = "env:", "file:"
HIDDEN = "***"
"""What is shown instead of a key."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY = re.compile(rf"[!-~]{{{SHORTEST},{LONGEST}}}")


def check_tenant(name: str) -> None:
    """Raise `ConfigError` with the reason if that is no name for a tenant."""
    if not _NAME.fullmatch(name):
        raise ConfigError("the name of a tenant is 1 to 64 letters, digits, dots, dashes and underscores")


def digest_key(value: Any, environ: Mapping[str, str], folder: Path) -> str:
    """SHA-256, in hex, of the key that `value` is or says where to find, or of each of a list of such, with spaces between; relative paths count from `folder`.

    Raises:
        ConfigError: there is none, or it cannot be one; the reason never holds the value.
    """
    if not isinstance(value, list):
        return _digest(value, environ, folder)
    if not 0 < len(value) <= MOST:
        raise ConfigError(f"expected 1 to {MOST} keys")
    digests = [_digest(one, environ, folder) for one in value]
    if len(set(digests)) < len(digests):
        raise ConfigError("the same key is there twice")
    return " ".join(digests)


def _digest(value: Any, environ: Mapping[str, str], folder: Path) -> str:
    if isinstance(value, dict):
        raise ConfigError("expected a text; a name with dots stands in quotes")
    if not isinstance(value, str):
        raise ConfigError("expected a text")
    key = _key(value, environ, folder)
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"expected a key of {SHORTEST} to {LONGEST} visible ASCII characters without spaces"
        )
    return hashlib.sha256(key.encode()).hexdigest()


def _key(value: str, environ: Mapping[str, str], folder: Path) -> str:
    if value.startswith(ENVIRONMENT):
        variable = value.removeprefix(ENVIRONMENT)
        if variable not in environ:
            raise ConfigError(f"the environment has no variable {variable!r}")
        return environ[variable]
    if value.startswith(FILE):
        path = folder / Path(value.removeprefix(FILE)).expanduser()
        try:
            return _private_text(path).strip()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: a key is ASCII text") from None
    return value


def _private_text(path: Path) -> str:
    """What the file says, unless others may read or write it."""
    with path.open(encoding="ascii") as file:
        mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and mode & 0o077:
            raise ConfigError(f"{path}: others may read or write it (mode {mode & 0o777:04o}); chmod 600 it")
        return file.read(LONGEST + 64)
