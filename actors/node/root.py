"""A node: its root actor, started from a `NodeConfig`, and the record by which others find it.

`<runtime_dir>/node.json` names the root's endpoint, the URL, the pid and the log folder while the node runs. SIGINT and SIGTERM drain and
stop it; a second one stops at once. It exits with 1 and the first cause when supervision gives up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from sgl_actors.actors.microkernel.address import Address
from sgl_actors.actors.microkernel.cell import Cell, Exit
from sgl_actors.actors.microkernel.control import KERNEL
from sgl_actors.actors.microkernel.kernel import KernelActor
from sgl_actors.actors.microkernel.process import Boot
from sgl_actors.actors.microkernel.root import ROOT, root_endpoint
from sgl_actors.actors.microkernel.supervisor import Supervisor
from sgl_actors.actors.microkernel.system import System
from sgl_actors.actors.microkernel.zmq_transport import ZmqTransport
from sgl_actors.actors.node.config import NodeConfig, make_runtime_dir
from sgl_actors.actors.node.node_root import NodeRoot
from sgl_actors.actors.node.record import FILE, NodeRecord, read_record
from sgl_actors.errors import ConfigError

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path at most (`sun_path`)."""


class RunningNode:
    """One node whose root lives in this process.

    Raises:
        ConfigError: a node of that name runs already, the port is taken, or the runtime folder cannot be used.
        CheckpointError: the model is not there.
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.done = asyncio.Event()
        self.hurried = False
        self.url = self._claim_port()
        runtime_dir = make_runtime_dir(config.runtime_dir)
        self._check_dir(runtime_dir)
        self._record_file = runtime_dir / FILE
        for stale in runtime_dir.glob("*.ipc"):
            stale.unlink(missing_ok=True)
        config.log_dir.mkdir(parents=True, exist_ok=True)
        self.endpoint = root_endpoint(runtime_dir)
        self.supervisor = Supervisor(
            [spec.child(name) for name, spec in self.config.actors.items()],
            config.supervisor.strategy,
            config.supervisor.intensity,
            config.supervisor.period,
        )
        options = config.node
        boot = Boot(
            "",
            "",
            Address(ROOT, 1, self.endpoint),
            options.log_dir,
            self.config.to_builtins(),
            options.log_level,
            options.log_size,
        )
        self.system = System(ROOT, ZmqTransport(self.endpoint), logger=boot.logger)
        self._root_config = {
            "system": self.system,
            "supervisor": self.supervisor,
            "boot": boot,
            "socket_dir": runtime_dir,
            "on_done": self.done.set,
            "drain": config.node.drain,
            "node_config": self.config,
        }

    def _check_dir(self, runtime_dir: Path) -> None:
        """Refuse a folder whose sockets would have too long a name, and one of a node that runs."""
        longest = max((len(spec.process) for spec in self.config.actors.values()), default=0)
        if len(os.fsencode(runtime_dir)) + longest + 16 > MAX_SOCKET_PATH:
            raise ConfigError(
                f"node.runtime_dir: {runtime_dir} is too long for the path of a socket ({MAX_SOCKET_PATH} bytes)"
            )
        record = read_record(runtime_dir)
        if record is not None and record.alive:
            raise ConfigError(
                f"a node named {record.name!r} is running already (pid {record.pid}, {record.url or record.endpoint}); "
                "stop it, or give this one another name: [node] name"
            )

    def _claim_port(self) -> str:
        """Choose a free port for port 0, and refuse one that is taken before anything is loaded."""
        if "gateway" not in self.config.actors:
            return ""
        options = self.config.gateway
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, options.port))
            except OSError as error:
                raise ConfigError(
                    f"gateway.port: cannot listen on {options.host}:{options.port}: {error.strerror}; "
                    "is another node running there? Choose another port (0 takes a free one)"
                ) from None
            port = probe.getsockname()[1]
        self.config = msgspec.structs.replace(
            self.config, gateway=msgspec.structs.replace(options, port=port)
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        return f"{'https' if options.tls_cert else 'http'}://{host}:{port}"

    async def start(self) -> Cell:
        """Open the kernel and start the root; children start in parallel. Returns the root's cell."""
        await self.system.open()
        nothing = {"system": self.system, "terminated": asyncio.Event()}
        self.system.spawn(KernelActor, KERNEL, nothing)
        cell = self.system.spawn(NodeRoot, ROOT, self._root_config, epoch=1, on_exit=self._root_ended)
        await cell.ready.wait()
        record = NodeRecord(
            self.endpoint,
            os.getpid(),
            self.url,
            self.config.node.name,
            str(self.config.log_dir),
            list(self.config.tenants),
        )
        temporary = self._record_file.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(self._record_file)
        return cell

    def _root_ended(self, _: Address, exit_: Exit) -> None:
        """Without its root a node cannot go on."""
        if not exit_.normal:
            self.supervisor.failed = self.supervisor.failed or f"root: {exit_.reason}"
        self.done.set()

    def stop_on_signals(self, cell: Cell, notice: Callable[[float], None] = lambda _: None) -> None:
        """Have SIGINT and SIGTERM drain and stop the node; the second one stops at once.

        Args:
            cell: the root's.
            notice: called at the first signal with the seconds that running requests get.
        """
        loop = asyncio.get_running_loop()
        asked = 0

        def stop() -> None:
            nonlocal asked
            asked += 1
            if asked == 1 and cell.state == "running":
                cell.context.task(self._shutdown(cell, self.config.node.drain))
                notice(self.config.node.drain)
            else:
                self.hurried = True
                self.done.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)

    @staticmethod
    async def _shutdown(cell: Cell, drain: float) -> None:
        assert isinstance(cell.actor, NodeRoot)
        await cell.actor.shutdown(drain)

    async def close(self) -> str:
        """End everything and remove the record. Returns the first cause if supervision gave up, else ""."""
        self.supervisor.closing = True  # what is killed from here on has not failed
        self._record_file.unlink(missing_ok=True)
        await self.system.close()
        Path(self.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        return self.supervisor.failed
