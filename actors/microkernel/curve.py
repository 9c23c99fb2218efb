"""Keys of the bus over tcp: CURVE (https://rfc.zeromq.org/spec/26) encrypts, ZAP (https://rfc.zeromq.org/spec/27) says who comes in.

A key pair is two files: ``NAME.pub`` to give away and ``NAME.key`` to keep, which nobody else may read. Both hold 40 characters of Z85.
A server socket with CURVE but without a ZAP handler lets every key in, so the two are only ever set together, by `Doorkeeper.guard`.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from sgl_actors.actors.microkernel.zmq_transport import fd_of
from sgl_actors.errors import ConfigError

PUBLIC, SECRET = ".pub", ".key"

_Z85 = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LONGEST_FILE = 1024
_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION, _CURVE = b"1.0", b"CURVE"


class KeyPair(msgspec.Struct, frozen=True):
    """A CURVE key pair in Z85. `repr` does not show the secret half."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r})"


def draw() -> KeyPair:
    """A fresh pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def write_keys(name: str, folder: Path) -> KeyPair:
    """Draw a pair and write ``NAME.pub`` and ``NAME.key`` (mode 0600) into `folder`.

    Raises:
        ConfigError: one of them is there already, which is never overwritten, or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r}: the name of a key is 1 to 64 letters, digits, dots, dashes and underscores"
        )
    pair = draw()
    public, secret = folder / f"{name}{PUBLIC}", folder / f"{name}{SECRET}"
    if public.exists():
        raise ConfigError(f"{public} is there already; choose another name, or remove it first")
    _write(secret, pair.secret, 0o600)
    _write(public, pair.public, 0o644)
    return pair


def _write(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; choose another name, or remove it first") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")


def read_secret(path: Path) -> KeyPair:
    """The pair whose secret half is in that file.

    Raises:
        ConfigError: it cannot be read, holds no key, or others than its owner may read or write it.
    """
    text, facts = _read(path)
    if facts.st_uid != os.getuid():
        raise ConfigError(f"{path} belongs to another user")
    if facts.st_mode & 0o077:
        raise ConfigError(f"{path} has mode {facts.st_mode & 0o777:04o}: others may use it; chmod 600 it")
    keys = _keys(text, path)
    if len(keys) != 1:
        raise ConfigError(f"{path}: expected one key")
    try:
        return KeyPair(zmq.curve_public(keys[0].encode()).decode(), keys[0])
    except (zmq.ZMQError, ValueError):
        raise ConfigError(f"{path}: no secret key") from None


def read_public(path: Path) -> list[str]:
    """The public keys in that file, one a line: while a key is being replaced there are two, which are both good."""
    return _keys(_read(path)[0], path)


def check_public(key: str) -> str:
    """`key`, if it is 40 characters of Z85; else `ConfigError`."""
    try:
        if _Z85.fullmatch(key):
            z85.decode(key.encode())
            return key
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"expected a public key (40 characters of Z85, or file:NAME{PUBLIC})")


def _read(path: Path) -> tuple[str, os.stat_result]:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigError(f"{path}: is no file")
            return file.read(_LONGEST_FILE).decode("ascii"), facts
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: holds no key (40 characters of Z85)") from None


def _keys(text: str, path: Path) -> list[str]:
    keys = text.split()
    if not keys or not all(_Z85.fullmatch(key) for key in keys):
        raise ConfigError(f"{path}: holds no key (40 characters of Z85)")
    return keys


class Doorkeeper:
    """Answers a context's ZAP requests: who has one of the `peers`' keys comes in, under its peer's name (`User-Id`).

    Belongs to one event loop. `counters` counts handshakes "accepted" and "refused".

    Args:
        context: whose sockets it guards.
        peers: name by public key, in Z85.
        pair: the key pair that those sockets have.
        barred: whether a peer is kept out for now.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        peers: Mapping[str, str],
        pair: KeyPair,
        barred: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._peers = {z85.decode(key.encode()): name.encode() for key, name in peers.items()}
        self._pair, self._barred = pair, barred
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd_of(self._socket), self._readable)
        self._loop.call_soon(self._readable)

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Have a socket, before it is bound, take only connections with CURVE, and ask here for each."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, b"sgl-actors")

    def _readable(self) -> None:
        while not self._socket.closed:
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
                self._socket.send_multipart(self._answer(request), zmq.NOBLOCK)
            except zmq.Again:
                return

    def _answer(self, request: list[bytes]) -> list[bytes]:
        identifier = request[1] if len(request) > 1 else b""
        name = None
        if len(request) == 7 and request[0] == _VERSION and request[5] == _CURVE:
            name = self._peers.get(request[6])
        if name is None or self._barred(name.decode()):
            self.counters["refused"] += 1
            return [_VERSION, identifier, b"400", b"not let in", b"", b""]
        self.counters["accepted"] += 1
        return [_VERSION, identifier, b"200", b"", name, b""]

    def close(self) -> None:
        """Before the context is ended."""
        self._loop.remove_reader(fd_of(self._socket))
        self._socket.close(0)
