"""The names of `sgl_actors.compat`, and its backends as far as they need no model."""

from __future__ import annotations

import pytest

import sgl_actors.compat as sgl
from sgl_actors.errors import ConfigError, NotReady
from tests.programs.fakes import FakeClient, backend_of

STOCK = {
    "Runtime", "assistant", "assistant_begin", "assistant_end", "flush_cache", "function", "gen", "gen_int", "gen_string",
    "get_server_info", "image", "select", "separate_reasoning", "set_default_backend", "system", "system_begin", "system_end", "user",
    "user_begin", "user_end", "video", "RuntimeEndpoint", "greedy_token_selection", "token_length_normalized",
    "unconditional_likelihood_normalized", "Anthropic", "LiteLLM", "OpenAI", "VertexAI", "global_config", "__version__",
}  # fmt: skip
"""Public names of the frontend of SGLang 0.5."""


def test_names() -> None:
    """Every name of the frontend is there; others are refused with a list of those that are."""
    assert set(sgl.__all__) >= STOCK
    assert all(hasattr(sgl, name) for name in sgl.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'Engine'; it has Anthropic, .*video"):
        sgl.Engine  # noqa: B018


@pytest.mark.parametrize("name", ["VertexAI", "LiteLLM", "Crusoe"])
def test_api_backends_say_that_they_are_not_there(name: str) -> None:
    """Constructing one raises a typed error with the way out."""
    with pytest.raises(ConfigError, match=rf"{name} .*base_url"):
        getattr(sgl, name)("a-model", api_key="key")


def test_endpoints_that_are_none() -> None:
    """An address, a key or an argument that cannot be used is refused before anything is asked."""
    cases: list[tuple[dict[str, str], str]] = [
        ({"base_url": "localhost:1"}, "no address"),
        ({"base_url": "http://localhost:1", "api_key": "two words"}, "visible ASCII"),
        ({"base_url": "http://localhost:1", "verify": "ca.pem"}, "SSL_CERT_FILE"),
    ]
    for arguments, words in cases:
        with pytest.raises(ConfigError, match=words):
            sgl.RuntimeEndpoint(**arguments)
    with pytest.raises(NotReady, match=r"http://127\.0\.0\.1:9/get_model_info"):
        sgl.RuntimeEndpoint("http://127.0.0.1:9", chat_template_name="chatml").get_model_name()


def test_backends_are_unwrapped() -> None:
    """What has an `endpoint` runs programs there, as SGLang's Runtime does; what is no backend is named."""

    class Wrapped:
        def __init__(self, endpoint: object) -> None:
            self.endpoint = endpoint

    backend = backend_of(FakeClient())
    assert sgl.global_config.runtime(Wrapped(Wrapped(backend))) is backend
    with pytest.raises(ConfigError, match="'nowhere' is no backend"):
        sgl.global_config.runtime("nowhere")
