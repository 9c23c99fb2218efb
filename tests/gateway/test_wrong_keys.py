"""Who guesses keys is slowed down, by address, in bounded memory."""

from __future__ import annotations

import httpx2
import pytest

from sgl_actors.actors.gateway.app import build_app
from sgl_actors.actors.gateway.failures import ADDRESSES, Failures, network
from sgl_actors.actors.gateway.messages import Options
from sgl_actors.errors import Overloaded
from tests.gateway.conftest import MakeService

KEYS = {"alice": "alice-key", "admin": "admin-key"}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


async def ask(app: object, key: str, address: str = "192.0.2.1") -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app, client=(address, 1))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.get("/v1/models", headers={"x-api-key": key} if key else {})


async def test_guesses_are_slowed_down(make_service: MakeService) -> None:
    """After so many wrong keys in a minute no key from that address is looked at, not even a right one; others are unhurt; time heals."""
    clock = Clock()
    app = build_app(make_service(Options(port=0, max_wrong_keys=6), now=clock, keys=KEYS))
    for _ in range(6):
        assert (await ask(app, "a-wrong-key")).status_code == 401
    for key in ("a-wrong-key", KEYS["alice"]):
        refused = await ask(app, key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "10"
    assert (await ask(app, KEYS["alice"], "192.0.2.2")).status_code == 200
    clock.time += 10
    assert (await ask(app, KEYS["alice"])).status_code == 200
    assert (await ask(app, "a-wrong-key")).status_code == 401
    assert (await ask(app, "a-wrong-key")).status_code == 429
    clock.time += 60
    for _ in range(6):
        assert (await ask(app, "a-wrong-key")).status_code == 401


async def test_what_is_no_guess_is_not_counted(make_service: MakeService) -> None:
    """Requests without a key, with a right one, and any number where the limit is off."""
    service = make_service(Options(port=0, max_wrong_keys=2), keys=KEYS)
    app = build_app(service)
    for key in ("", KEYS["alice"]) * 5:
        assert (await ask(app, key)).status_code == (200 if key else 401)
    assert len(service.failures) == 0
    off = build_app(make_service(Options(port=0, max_wrong_keys=0), keys=KEYS))
    for _ in range(10):
        assert (await ask(off, "a-wrong-key")).status_code == 401


def test_the_table_is_bounded() -> None:
    """Who was heard of least recently is forgotten first."""
    failures = Failures(1, Clock())
    for number in range(ADDRESSES + 10):
        failures.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures) == ADDRESSES
    failures.check("10.0.0.0")
    with pytest.raises(Overloaded):
        failures.check(f"10.0.{(ADDRESSES + 9) >> 8}.{(ADDRESSES + 9) & 255}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_places(address: str, expected: str) -> None:
    """An IPv4 address is a place, an IPv6 network of 64 bits is one, too: a single customer has all of it."""
    assert network(address) == expected
