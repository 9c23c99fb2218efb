"""API models as backends: each has a kernel in this process that hosts the model's actor, beside the streams of the programs that ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.microkernel.plugins import load_class
from sgl_actors.actors.programs.api_client import ApiClient
from sgl_actors.actors.programs.api_hosts import describe
from sgl_actors.actors.programs.local_kernel import open_kernel
from sgl_actors.actors.programs.price_table import prices_of
from sgl_actors.actors.programs.runtime import Backend, NodeHandle
from sgl_actors.errors import ConfigError
from sgl_actors.lang.budget import Budget
from sgl_actors.lang.protocols import Client
from sgl_actors.lang.trace import Prices

ADDRESS: Final = "api/model"


class ApiBackend(Backend):
    """A model behind an API. Its limits, retries and budget count for all programs that run on it together; see `OpenAI`.

    What is wrong with the options or the key is a `ConfigError` when it is opened, which the first program does.

    Attributes:
        actor: class of the model's actor.
        model: its name there.
    """

    actor: ClassVar[str] = "sgl_actors.actors.api.actor:ApiActor"
    provider: ClassVar[str] = ""

    def __init__(
        self, model: str, api_key: str | None, prices: Prices | None, options: Mapping[str, Any]
    ) -> None:
        self.model = model
        table = prices_of(model) if prices is None else prices
        config = {
            "api": {
                "options": {**options, "provider": self.provider, "model": model, "prices": table},
                "key": api_key,
            }
        }

        async def opens() -> tuple[NodeHandle, Callable[[Context], Client], bool]:
            kernel = await open_kernel()
            try:
                await kernel.host(load_class(self.actor), ADDRESS, config)
                info = await describe(kernel.context("opener"), ADDRESS)
            except BaseException:
                await kernel.close()
                raise
            return kernel, lambda context: ApiClient(context, ADDRESS, info, patience=0.0), False

        where = str(options.get("azure_endpoint") or options["base_url"])
        super().__init__(opens, f"{type(self).__name__} {model}{f' at {_address(where)}' if where else ''}")


class OpenAI(ApiBackend):
    """A model behind OpenAI's API, or any that is compatible with it: Azure's, a node of ours, vLLM, llama.cpp.

    Needs ``pip install sgl-actors[openai]``. All programs that run on it, on one event loop, share its limits; to share them between processes, host it
    in a node and `connect(…, api=NAME)`.

    Args:
        model: its name there.
        api: "chat" or "completions"; only completions go on with any text, which is what speculative execution saves most with.
        base_url: address of the API; "" for OpenAI's own.
        api_key: the key itself; "" for none. Better is to leave it out and say where it is:
        key: ``"env:NAME"``, ``"file:PATH"``, ``"none"``; "" for $OPENAI_API_KEY, which is sent to OpenAI's own address only.
        dialect: whose server it is ("openai", "sgl-actors", "vllm", "sglang", "llama.cpp", "other"); "" finds it out.
        azure_endpoint, api_version: of Azure.
        chat_template: of a model that goes on with text: Jinja source, or ``"file:PATH"``; "" asks the server.
        capabilities: what is to be taken for true of the model, by the names of `Capabilities`.
        concurrency: most requests at a time.
        requests_per_minute, tokens_per_minute: are not exceeded; 0 for no limit.
        retries: most further tries of one request, where they help.
        timeout: seconds of one try.
        prices: of tokens; without them the user's table, ``~/.config/sgl-actors/prices.toml``, may have them.
        budget: for all programs together.
        headers: sent with every request.
        extra: fields of every request's body.

    Raises:
        ConfigError: the table of prices cannot be read, or `base_url` is no address.

    Example:
        >>> OpenAI("gpt-4o-mini", requests_per_minute=500)
        <OpenAI gpt-4o-mini not open>
        >>> OpenAI("smol", base_url="http://127.0.0.1:30000/v1", api="completions")
        <OpenAI smol at http://127.0.0.1:30000/v1 not open>
    """

    provider = "openai"

    def __init__(
        self,
        model: str,
        *,
        api: str = "chat",
        base_url: str = "",
        api_key: str | None = None,
        key: str = "",
        dialect: str = "",
        azure_endpoint: str = "",
        api_version: str = "",
        chat_template: str = "",
        capabilities: Mapping[str, Any] = {},
        concurrency: int = 32,
        requests_per_minute: float = 0.0,
        tokens_per_minute: float = 0.0,
        retries: int = 5,
        timeout: float = 120.0,
        prices: Prices | None = None,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        headers: Mapping[str, str] = {},
        extra: Mapping[str, Any] = {},
    ) -> None:
        super().__init__(
            model,
            api_key,
            prices,
            {
                "api": api,
                "base_url": base_url,
                "key": key,
                "dialect": dialect,
                "azure_endpoint": azure_endpoint,
                "api_version": api_version,
                "chat_template": chat_template,
                "capabilities": dict(capabilities),
                "concurrency": concurrency,
                "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute,
                "retries": retries,
                "timeout": timeout,
                "budget": budget,
                "headers": dict(headers),
                "extra": dict(extra),
            },
        )


class _Plain(ApiBackend):
    """A provider with one API."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "",
        api_key: str | None = None,
        key: str = "",
        capabilities: Mapping[str, Any] = {},
        concurrency: int = 32,
        requests_per_minute: float = 0.0,
        tokens_per_minute: float = 0.0,
        retries: int = 5,
        timeout: float = 120.0,
        prices: Prices | None = None,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        headers: Mapping[str, str] = {},
        extra: Mapping[str, Any] = {},
    ) -> None:
        super().__init__(
            model,
            api_key,
            prices,
            {
                "base_url": base_url,
                "key": key,
                "capabilities": dict(capabilities),
                "concurrency": concurrency,
                "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute,
                "retries": retries,
                "timeout": timeout,
                "budget": budget,
                "headers": dict(headers),
                "extra": dict(extra),
            },
        )


class Anthropic(_Plain):
    """A model behind Anthropic's API. Needs ``pip install sgl-actors[anthropic]``; the key is $ANTHROPIC_API_KEY unless another is named.

    Its arguments mean what they mean for `OpenAI`.

    Example:
        >>> Anthropic("claude-haiku-4-5", concurrency=8)
        <Anthropic claude-haiku-4-5 not open>
    """

    provider = "anthropic"


class Gemini(_Plain):
    """A model behind Google's Gemini API. Needs ``pip install sgl-actors[gemini]``; the key is $GEMINI_API_KEY or $GOOGLE_API_KEY unless another is named.

    Its arguments mean what they mean for `OpenAI`.

    Example:
        >>> Gemini("gemini-2.5-flash", retries=3)
        <Gemini gemini-2.5-flash not open>
    """

    provider = "gemini"


def _address(url: str) -> str:
    """An address for people: without a password, or a query that may hold one."""
    try:
        found = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"base_url is no address: {error}", param="base_url") from None
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"
