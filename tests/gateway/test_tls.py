"""HTTPS, with a certificate of one's own."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from sgl_actors.actors.gateway.actor import GatewayActor, tls_files
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.actors.microkernel import Context
from sgl_actors.errors import ConfigError
from tests.gateway.test_gateway_actor import FakeContext, running


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key


async def test_a_certificate_makes_it_https(pair: tuple[Path, Path]) -> None:
    """A client that trusts the certificate is served, one that does not is not, and plain HTTP gets no answer of the node."""
    cert, key = pair
    trusting = ssl.create_default_context(cafile=str(cert))
    async with running(port=0, tls_cert=str(cert), tls_key=str(key)) as actor:
        url = actor.listening().url
        assert url.startswith("https://127.0.0.1:")
        async with httpx2.AsyncClient(verify=trusting) as client:
            assert (await client.get(url + "/version")).status_code == 200
        async with httpx2.AsyncClient() as client:
            with pytest.raises(httpx2.ConnectError):
                await client.get(url + "/version")
            with pytest.raises(httpx2.TransportError):
                await client.get(url.replace("https", "http") + "/version")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tls_cert": "CERT"}, "gateway.tls_key: a certificate and its key belong together"),
        ({"tls_key": "KEY"}, "gateway.tls_cert: a certificate and its key belong together"),
        ({"tls_cert": "CERT", "tls_key": "none"}, "gateway.tls_key: No such file"),
        ({"tls_cert": "CERT", "tls_key": "WIDE"}, "others may read"),
    ],
)
def test_what_makes_no_pair(pair: tuple[Path, Path], given: dict[str, str], why: str) -> None:
    """One without the other, a missing key, and a key that others may read."""
    cert, key = pair
    wide = key.with_name("wide.pem")
    shutil.copy(key, wide)
    wide.chmod(0o640)
    names = {"CERT": str(cert), "KEY": str(key), "WIDE": str(wide)}
    options: dict[str, Any] = {name: names.get(value, value) for name, value in given.items()}
    with pytest.raises(ConfigError, match=why):
        tls_files(Options(**options))


async def test_a_certificate_that_is_none(pair: tuple[Path, Path]) -> None:
    """The gateway does not start, and says which setting is wrong."""
    _, key = pair
    async with asyncio.TaskGroup() as group:
        context = FakeContext(group, port=0, tls_cert=str(key), tls_key=str(key))
        actor = GatewayActor(cast("Context", context))
        with pytest.raises(ConfigError, match=r"gateway\.tls_cert"):
            await actor.start()
    await actor.stop()
