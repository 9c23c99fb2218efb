"""Several models behind one gateway, and the routes that load and unload them."""

from __future__ import annotations

from typing import Any

import httpx2

from sgl_actors.actors.node.messages import LoadedModel, LoadModel, UnloadModel
from tests.gateway.conftest import MakeService, client_of
from tests.gateway.fake_node import FakeNode

OTHER = LoadedModel("other", "@other", "/models/other", "serving")


async def test_requests_go_to_the_model_they_name(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """Whichever route; without a name to the default; a model that is unloading is not there any more."""
    node.others = [OTHER, LoadedModel("leaving", "@leaving", "/x", "unloading")]
    other = node.beside.setdefault("other", FakeNode("other"))
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "a", "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
        ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 2}}),
    ]
    for path, body in bodies:
        assert (await client.post(path, json={**body, "model": "other"})).status_code == 200
        assert (await client.post(path, json={**body, "model": "leaving"})).status_code == 404
        assert (await client.post(path, json=body)).status_code == 200
    assert (len(node.asked), len(other.asked)) == (3, 3)
    await client.post("/abort_request", json={"abort_all": True})
    assert node.cancelled == other.cancelled == [([], True)]


async def test_load_and_unload(make_service: MakeService, node: FakeNode) -> None:
    """The admin's alone; what is asked of the root is what the body says."""
    service = make_service(keys={"admin": "key-of-admin", "alice": "key-of-alice"})
    async with client_of(service, "key-of-alice") as alice:
        assert (await alice.post("/models/load", json={"model": "smollm2"})).status_code == 403
        assert (await alice.post("/models/unload", json={"model": "fake"})).status_code == 403
    async with client_of(service, "key-of-admin") as admin:
        answer = await admin.post("/models/unload", json={"model": "fake", "drain": 3})
        assert answer.json() == {"models": [{"id": "fake", "state": "serving"}]}
    assert node.changes == [UnloadModel("fake", 3.0)]


async def test_a_model_is_loaded_by_its_name(client: httpx2.AsyncClient, node: FakeNode) -> None:
    """It goes on to the root, which takes no file from outside."""
    await client.post("/models/load", json={"model": "some", "name": "b", "replace": True})
    assert node.changes == [LoadModel("some", "b", replace=True, named=True)]
    assert (await client.post("/models/load", json={"model": ""})).status_code == 400
