"""SGLang's frontend on this package: a program that says ``import sglang as sgl`` runs with that line changed.

    import sgl_actors.compat as sgl

    @sgl.function
    def capital(s, country):
        s += sgl.user(f"What is the capital of {country}?") + sgl.assistant(sgl.gen("answer", max_tokens=16))

    state = capital.run(country="France")
    state["answer"]

Bodies are plain functions and may use threads; `state["answer"]` blocks. Programs run on a node that is opened on first use and ends with this
process, unless `set_default_backend` or `backend=` names another.

What is different, because there it hangs or is silent: a variable that will never have a value raises (`NoVariable`, `NoValue`, both of which are
`KeyError`s, too); text and messages of a state that failed raise its failure, which `state.error()` returns; joining a branch that failed raises;
adding to a state that is over raises. Chat templates are those of the model.
"""

from __future__ import annotations

import atexit
import inspect
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx2

from sgl_actors import __version__
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.node.embedded import PREFIX, open_node
from sgl_actors.actors.node.record import NodeRecord, read_record
from sgl_actors.actors.programs import api_backend
from sgl_actors.actors.programs import runtime as nodes
from sgl_actors.errors import ConfigError, NotReady
from sgl_actors.lang.backends.native import failure
from sgl_actors.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from sgl_actors.lang.primitives import (
    assistant_begin,
    assistant_end,
    image,
    separate_reasoning,
    system_begin,
    system_end,
    user_begin,
    user_end,
    video,
)
from sgl_actors.lang.threaded.config import global_config
from sgl_actors.lang.threaded.errors import NoExpression, NoValue, NoVariable
from sgl_actors.lang.threaded.function import SglFunction, function
from sgl_actors.lang.threaded.loop import background
from sgl_actors.lang.threaded.primitives import (
    assistant,
    gen,
    gen_int,
    gen_string,
    select,
    system,
    user,
)
from sgl_actors.lang.threaded.state import ProgramState, ProgramStateGroup

__all__ = [
    "Anthropic", "Crusoe", "LiteLLM", "NoExpression", "NoValue", "NoVariable", "OpenAI", "ProgramState", "ProgramStateGroup", "Runtime",
    "RuntimeEndpoint", "SglFunction", "VertexAI", "__version__", "assistant", "assistant_begin", "assistant_end", "flush_cache",
    "function", "gen", "gen_int", "gen_string", "get_server_info", "global_config", "greedy_token_selection", "image", "select",
    "separate_reasoning", "set_default_backend", "system", "system_begin", "system_end", "token_length_normalized",
    "unconditional_likelihood_normalized", "user", "user_begin", "user_end", "video",
]  # fmt: skip

HTTP_TIMEOUT: Final = 30.0

SETTINGS: Final = {
    "model_path": "model.path",
    "host": "gateway.host",
    "port": "gateway.port",
    "dtype": "model.dtype",
    "served_model_name": "model.served_name",
    "context_length": "model.context",
    "device": "model.device",
    "log_level": "node.log_level",
    "schedule_policy": "scheduler.policy",
    "chunked_prefill_size": "scheduler.chunk",
    "max_running_requests": "scheduler.max_batch",
    "page_size": "cache.page_size",
    "radix_eviction_policy": "cache.eviction",
}
"""Arguments of SGLang's server and what they are in node.toml."""
DTYPES: Final = {"float": "float32", "half": "float16"}

_node = nodes.Node()
global_config.fallback = lambda: _node


class RuntimeEndpoint(nodes.Connection):
    """A node, or another server of SGLang's routes, at `base_url`.

    Args:
        base_url: ``http://host:port``.
        api_key: for a node with tenants; without it $SGL_ACTORS_API_KEY.
        verify: not taken: name certificates with $SSL_CERT_FILE.
        chat_template_name: taken and without effect: the node renders chats with the model's own template.
        programs: another address of the same node that programs talk to.

    Raises:
        ConfigError: no such address, a key that no request could carry, or `verify`.

    Example:
        >>> RuntimeEndpoint("http://127.0.0.1:30000")
        <Connection to http://127.0.0.1:30000 not open>
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,  # noqa: ARG002
        *,
        programs: str | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"RuntimeEndpoint: {base_url!r:.80} is no address; http://host:port")
        if verify is not None:
            raise ConfigError("RuntimeEndpoint: verify is not taken; set $SSL_CERT_FILE instead")
        key = nodes.check_key(os.environ.get(nodes.KEY_VARIABLE, "") if api_key is None else api_key)
        super().__init__(programs or base_url.rstrip("/"), key)
        self.base_url = base_url.rstrip("/")

    @property
    def model_info(self) -> dict[str, Any]:
        """What the server says of its model."""
        return self._ask("GET", "/get_model_info")

    def get_model_name(self) -> str:
        """Where its model comes from."""
        return str(self.model_info["model_path"])

    def get_server_info(self) -> dict[str, Any]:
        """What the server says of itself."""
        return self._ask("GET", "/get_server_info")

    def flush_cache(self) -> bool:
        """Empty its cache; False if something was running, and nothing was done."""
        return background.wait(lambda: nodes.flush_cache(self))

    def cache_prefix(self, prefix_str: str) -> None:
        """Have it compute a text, so that it is cached."""
        self._ask("POST", "/generate", {"text": prefix_str, "sampling_params": {"max_new_tokens": 0}})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            answer = httpx2.request(
                method, self.base_url + path, json=body, headers=headers, timeout=HTTP_TIMEOUT
            )
        except httpx2.TransportError as error:
            raise NotReady(f"{self.base_url}{path}: {type(error).__name__}") from None
        if answer.status_code != httpx2.codes.OK:
            raise failure(answer.status_code, answer.content)
        found: dict[str, Any] = answer.json()
        return found


class Runtime:
    """A node of this process's own with a gateway, started now; it ends with the process, or with `shutdown`.

    Args:
        log_level: of its log files.
        arguments: those of `SETTINGS`, under SGLang's names. Others have no counterpart: they are named in a warning and left out.

    Raises:
        ConfigError, CheckpointError: what the node said of its settings or its model.
        NotReady: it did not come up.

    Example:
        >>> def serve(path):
        ...     runtime = Runtime(model_path=path)
        ...     set_default_backend(runtime)
        ...     return runtime.url

    Attributes:
        url: of its gateway.
        generate_url: for generating without a program.
        endpoint: it as a backend.
    """

    def __init__(self, log_level: str = "error", **arguments: Any) -> None:
        given = {"port": 0, **arguments, "log_level": log_level}
        for name in [name for name in given if name not in SETTINGS]:
            warnings.warn(f"Runtime: {name} has no counterpart in node.toml and is left out", stacklevel=2)
            del given[name]
        flags = {SETTINGS[name]: str(DTYPES.get(value, value)) for name, value in given.items()}
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        flags |= {"actors.gateway.enabled": "true", "node.runtime_dir": self._folder.name}
        self._handle: Any = background.wait(lambda: open_node(flags=flags))
        record = read_record(Path(self._folder.name)) or NodeRecord("", 0)
        self.url, self.generate_url = record.url, f"{record.url}/generate"
        self.endpoint = RuntimeEndpoint(record.url, programs=record.endpoint)
        atexit.register(self.shutdown)

    def __repr__(self) -> str:
        return f"<Runtime {self.url} {'ended' if self._handle is None else 'runs'}>"

    def cache_prefix(self, prefix: str) -> None:
        """Have it compute a text, so that it is cached."""
        self.endpoint.cache_prefix(prefix)

    def shutdown(self) -> None:
        """End the node; programs that run there fail. Nothing happens if it has ended."""
        handle, self._handle = self._handle, None
        if handle is not None:
            atexit.unregister(self.shutdown)
            background.wait(self.endpoint.close)
            background.wait(handle.close)
            self._folder.cleanup()


def set_default_backend(backend: Any) -> None:
    """Have programs run there unless `run(backend=…)` says otherwise; None goes back to a node of this process's own.

    Example:
        >>> set_default_backend(RuntimeEndpoint("http://127.0.0.1:30000"))
        >>> global_config.default_backend
        <Connection to http://127.0.0.1:30000 not open>
    """
    global_config.default_backend = backend


def flush_cache(backend: Any = None) -> bool:
    """Empty a backend's cache, by default the default one's; False if something was running, and nothing was done.

    Example:
        >>> flush_cache()
        True
    """
    found: Any = global_config.runtime(backend)
    return background.wait(lambda: nodes.flush_cache(found))


def get_server_info(backend: Any = None) -> dict[str, Any]:
    """What a backend says of itself, by default the default one.

    Example:
        >>> sorted(get_server_info())
        ['version']
    """
    found: Any = global_config.runtime(backend)
    if isinstance(found, RuntimeEndpoint):
        return found.get_server_info()
    return background.wait(lambda: _describe(found))


async def _describe(backend: nodes.Backend) -> dict[str, Any]:
    client = (await backend.open()).client
    if not isinstance(client, NodeClient):
        return {"version": __version__}
    model = await client.model()
    return {
        "version": __version__,
        "model_path": model.path,
        "served_model_name": model.served_name,
        "context_length": model.context,
        "dtype": model.dtype,
        "device": model.device,
        "page_size": model.page_size,
        "max_total_num_tokens": model.pages * model.page_size,
    }


INSTRUCT: Final = "gpt-3.5-turbo-instruct"
"""OpenAI's model that is none for chats, though nobody says so."""
RENAMED_ARGUMENTS: Final = {"max_retries": "retries", "default_headers": "headers"}
"""What the vendors' own clients call what is ours here."""


class OpenAI(api_backend.OpenAI):
    """A model behind OpenAI's API, Azure's, or a compatible one; as `sgl_actors.OpenAI`, which says more.

    Args:
        model_name: its name there.
        is_chat_model: False for one that goes on with text (`/completions`).
        chat_template: of such a one: Jinja source, or ``"file:PATH"``.
        is_azure: the endpoint, version and key are those of $AZURE_OPENAI_ENDPOINT, $OPENAI_API_VERSION and $AZURE_OPENAI_API_KEY, unless given.
        kwargs: `api_key`, `base_url`, `timeout`, `max_retries`, `default_headers`, `azure_endpoint`, `api_version`, and what else `sgl_actors.OpenAI` takes.

    Raises:
        ConfigError: another argument, or Azure without an endpoint.

    Example:
        >>> OpenAI("gpt-4o-mini", max_retries=2)
        <OpenAI gpt-4o-mini not open>
    """

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | None = None,
        is_azure: bool = False,
        **kwargs: Any,
    ) -> None:
        if chat_template is not None and not isinstance(chat_template, str):
            raise ConfigError("OpenAI: chat_template is Jinja source, or file:PATH", param="chat_template")
        if is_azure:
            kwargs.setdefault("azure_endpoint", os.environ.get("AZURE_OPENAI_ENDPOINT", ""))
            kwargs.setdefault("api_version", os.environ.get("OPENAI_API_VERSION", ""))
            if not kwargs["azure_endpoint"]:
                raise ConfigError("OpenAI: Azure needs azure_endpoint=, or $AZURE_OPENAI_ENDPOINT")
        chat = model_name != INSTRUCT if is_chat_model is None else is_chat_model
        own = {"api": "chat" if chat else "completions", "chat_template": chat_template or ""}
        super().__init__(model_name, **{**own, **_arguments(api_backend.OpenAI, kwargs)})


class Anthropic(api_backend.Anthropic):
    """A model behind Anthropic's API; as `sgl_actors.Anthropic`, which says more.

    Args:
        model_name: its name there.
        kwargs: `api_key`, `base_url`, `timeout`, `max_retries`, `default_headers`, and what else `sgl_actors.Anthropic` takes.

    Raises:
        ConfigError: another argument.

    Example:
        >>> Anthropic("claude-haiku-4-5")
        <Anthropic claude-haiku-4-5 not open>
    """

    def __init__(self, model_name: str, **kwargs: Any) -> None:
        super().__init__(model_name, **_arguments(api_backend.Anthropic, kwargs))


def _arguments(backend: type[api_backend.ApiBackend], given: dict[str, Any]) -> dict[str, Any]:
    """A vendor's own client's arguments as ours; those that say nothing are left out."""
    own = {RENAMED_ARGUMENTS.get(name, name): value for name, value in given.items() if value is not None}
    known = inspect.signature(backend).parameters
    for name in own.keys() - known.keys():
        raise ConfigError(
            f"{backend.__name__}: there is no argument {name!r}; there are {', '.join(known)}", param=name
        )
    return own


NEVER: Final = (
    "is not supported; its provider has an OpenAI-compatible address, give that to OpenAI(…, base_url=…)"
)


class _Elsewhere:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise ConfigError(f"{type(self).__name__} {NEVER}")


class VertexAI(_Elsewhere):
    """Models behind Google's API; raises `ConfigError`.

    Example:
        >>> try:
        ...     VertexAI("gemini")
        ... except Exception as error:
        ...     print(type(error).__name__)
        ConfigError
    """


class LiteLLM(_Elsewhere):
    """Models behind LiteLLM; raises `ConfigError`.

    Example:
        >>> try:
        ...     LiteLLM("any")
        ... except Exception as error:
        ...     print(type(error).__name__)
        ConfigError
    """


class Crusoe(_Elsewhere):
    """Models behind Crusoe's API; raises `ConfigError`.

    Example:
        >>> try:
        ...     Crusoe("any")
        ... except Exception as error:
        ...     print(type(error).__name__)
        ConfigError
    """


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}. Of SGLang's own names nothing else is here."
    )
