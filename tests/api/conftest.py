"""The stub server of the APIs: one for the whole run, as new for each test."""

from __future__ import annotations

import functools
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn

from sgl_actors.lang.backends.openai import OpenAI
from sgl_actors.lang.backends.vendor import Settings
from tests.api.openai_calls import KEY, Open
from tests.api.stub import Stub, build_app


@pytest.fixture(scope="session")
def stub_server() -> Iterator[Stub]:
    """A stub that listens on loopback, in a thread."""
    stub = Stub()
    listening = socket.create_server(("127.0.0.1", 0))
    stub.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(build_app(stub), log_level="critical", lifespan="off", date_header=False)
    )
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield stub
    server.should_exit = server.force_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def stub(stub_server: Stub) -> Stub:
    """The stub, as new."""
    stub_server.reset()
    return stub_server


@pytest.fixture
async def connect(stub: Stub) -> AsyncIterator[Open]:
    """Opens the OpenAI backend on the stub, and closes it."""
    opened: list[OpenAI] = []

    async def make(model: str = "gpt-4o", **settings: Any) -> OpenAI:
        told = {"base_url": f"{stub.url}/v1", "key": KEY, "dialect": "openai"} | settings
        vendor = OpenAI(Settings(model, **told))
        opened.append(vendor)
        await vendor.open()
        return vendor

    yield make
    for vendor in opened:
        await vendor.close()


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client of an SDK reads the certificates, which takes 20 ms; on loopback nothing needs them."""
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: _context())
