"""A node that listens on tcp: its configuration, and what its clients may do with real processes behind the bridge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import sgl_actors
from sgl_actors.actors.microkernel.curve import write_keys
from sgl_actors.actors.microkernel.messages import Actors, Done, ListActors, RestartActor
from sgl_actors.actors.node.config import load
from sgl_actors.actors.node.embedded import join
from sgl_actors.actors.node.root import RunningNode
from sgl_actors.errors import ConfigError, Forbidden, NotReady, Unauthorized
from tests.microkernel.bridged import free_port, until
from tests.microkernel.kernel_actors import Say
from tests.node.test_processes import until_ready, write_config

ECHO = 'class = "tests.microkernel.kernel_actors:Echo"'


@pytest.fixture
def listening(tmp_path: Path) -> Callable[[str], Path]:
    """Write a node.toml with these lines in `[node]` and an echo."""
    for name in ("node", "laptop", "boss", "stranger"):
        write_keys(name, tmp_path)

    def write(lines: str) -> Path:
        file = write_config(tmp_path, {"echo": ECHO})
        text = file.read_text()
        file.write_text(text.replace("[node]\n", f"[node]\n{lines}\n", 1))
        return file

    return write


async def test_clients_reach_a_node_over_tcp(listening: Callable[[str], Path], tmp_path: Path) -> None:
    """With a listed key they see who is up and hear of changes; only an admin may restart; the bridge itself may be restarted."""
    address = f"tcp://127.0.0.1:{free_port()}"
    file = listening(
        f'listen = "{address}"\nkey = "node.key"\n'
        'peers = {laptop = "file:laptop.pub", boss = {key = "file:boss.pub", admin = true}}'
    )
    config = load(file)
    assert list(config.actors) == ["echo", "bridge"]
    node = RunningNode(config)
    server = tmp_path / "node.pub"
    try:
        await node.start()
        operator = await join(node.endpoint)
        own = operator.context("test")
        await until_ready(own)
        laptop = await join(address, key=tmp_path / "laptop.key", server_key=server)
        context = laptop.context("test")
        rows = await context.call("root", ListActors(), Actors, timeout=5)
        assert [row.address for row in rows.rows] == ["echo", "bridge"]
        with pytest.raises(Forbidden, match="admin"):
            await context.call("root", RestartActor("echo"), Done, timeout=5)
        with pytest.raises(Forbidden, match="no client says"):
            await context.call("echo", Say("x"), Say, timeout=5)
        before = context._system.names["echo"]  # type: ignore[attr-defined]
        boss = await join(address, key=tmp_path / "boss.key", server_key=server.read_text().strip())
        await boss.context("test").call("root", RestartActor("echo"), Done, timeout=20)
        await until(lambda: context._system.names.get("echo", before) != before)  # type: ignore[attr-defined]
        with pytest.raises(Unauthorized):
            await join(address, key=tmp_path / "stranger.key", server_key=server)
        await boss.close()
        await own.call("root", RestartActor("bridge"), Done, timeout=20)
        await until(lambda: laptop.gone)
        await laptop.close()
        again = await join(address, key=tmp_path / "laptop.key", server_key=server)
        assert await again.context("test").call("root", ListActors(), Actors, timeout=5)
        await again.close()
        await operator.close()
    finally:
        await node.close()


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('listen = "tcp://127.0.0.1:7000"', "without keys"),
        ('listen = "tcp://127.0.0.1:7000"\nkey = "node.key"', "lists nobody"),
        ('listen = "tcp://*:7000"\nkey = "node.key"\npeers = {a = "file:laptop.pub"}', "every interface"),
        ('listen = "tcp://192.0.2.1:7000"\ninsecure_tcp = true', "loopback only"),
        (
            'listen = "tcp://127.0.0.1:7000"\nkey = "missing.key"\npeers = {a = "file:laptop.pub"}',
            "No such file",
        ),
        ('listen = "tcp://127.0.0.1:7000"\nkey = "open.key"\npeers = {a = "file:laptop.pub"}', "chmod 600"),
        ('peers = {a = "nonsense"}', "40 characters"),
        ('peers = {a = "file:missing.pub"}', "No such file"),
        ('peers = {a = {key = "file:laptop.pub", boss = true}}', "boss"),
        ('peers = {a = "file:laptop.pub", b = "file:laptop.pub"}', "same key"),
        ('peers = {"a b" = "file:laptop.pub"}', "name of a tenant"),
        ("peers = {a = 3}", "a:"),
        ("peers = {a = []}", "has no key"),
    ],
)
def test_a_node_without_proper_keys_does_not_start(
    lines: str, why: str, listening: Callable[[str], Path], tmp_path: Path
) -> None:
    """The configuration is refused, with the line where it stands."""
    (tmp_path / "open.key").write_text((tmp_path / "node.key").read_text())
    (tmp_path / "open.key").chmod(0o644)
    with pytest.raises(ConfigError, match=why) as caught:
        load(listening(lines))
    assert "node.toml:" in caught.value.message


def test_a_bridge_is_there_for_listening_only(listening: Callable[[str], Path]) -> None:
    """Without `listen` a node has none, and settings for one are a mistake."""
    assert "bridge" not in load(listening("")).actors
    file = listening("")
    file.write_text(file.read_text() + '\n[actors.bridge]\nprocess = "x"\n')
    with pytest.raises(ConfigError, match=r"needs \[node\] listen"):
        load(file)


def test_secrets_do_not_travel(listening: Callable[[str], Path], tmp_path: Path) -> None:
    """What processes are told is where the secret key lies, and public keys."""
    config = load(
        listening(
            'listen = "tcp://127.0.0.1:7000"\nkey = "node.key"\n'
            'peers = {laptop = ["file:laptop.pub", "file:boss.pub"]}'
        )
    )
    told = config.to_builtins()["node"]
    assert told["key"] == str(tmp_path / "node.key")
    publics = [(tmp_path / f"{name}.pub").read_text().strip() for name in ("laptop", "boss")]
    assert told["peers"] == {"laptop": {"key": publics, "admin": False}}
    for name in ("node", "laptop"):
        assert (tmp_path / f"{name}.key").read_text().strip() not in str(list(config.rows()))


async def test_joining_says_what_is_missing(tmp_path: Path) -> None:
    """A key without the node's, a node that is not there."""
    write_keys("laptop", tmp_path)
    with pytest.raises(ConfigError, match="server_key"):
        await join("tcp://127.0.0.1:7000", key=tmp_path / "laptop.key")
    with pytest.raises(NotReady, match="no node"):
        await join(f"ipc://{tmp_path}/root.ipc")


async def test_a_program_connects_with_keys(tmp_path: Path) -> None:
    """`connect` takes them, and opening says what is wrong with them."""
    write_keys("laptop", tmp_path)
    (tmp_path / "laptop.key").chmod(0o644)
    connection = sgl_actors.connect(
        "tcp://127.0.0.1:7000", key=tmp_path / "laptop.key", server_key=tmp_path / "laptop.pub"
    )
    try:
        with pytest.raises(ConfigError, match="chmod 600"):
            await connection.open()
    finally:
        await connection.close()
