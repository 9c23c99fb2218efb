"""`sgl-actors chat`: a conversation in the terminal, streamed as it comes.

`Conversation` holds the turns and knows no terminal; `chat_in_terminal` reads lines and prints chunks. Ctrl-C ends an
answer, or at the prompt the conversation, as Ctrl-D does. A line that begins with a slash is a command.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from sgl_actors.actors.microkernel import Context
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate, SamplingOptions
from sgl_actors.cli import INTERRUPTED
from sgl_actors.cli.node import client, find
from sgl_actors.cli.terminal import Terminal
from sgl_actors.errors import NotReady, SglActorsError

HELP = "/clear begins anew; Ctrl-C stops an answer; Ctrl-C or Ctrl-D at the prompt, or /quit, ends."


@dataclass(frozen=True)
class Settings:
    """How answers are sampled; `seed` makes a conversation repeatable."""

    system: str = ""
    max_tokens: int = 512
    temperature: float = 0.7
    seed: int | None = None


@dataclass
class Conversation:
    """The turns so far. A turn whose answer failed leaves no trace; one that was stopped keeps what it had."""

    settings: Settings
    messages: list[ChatMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [ChatMessage("system", self.settings.system)] if self.settings.system else []

    async def answer(self, node: NodeClient, text: str, write: Callable[[str], object]) -> None:
        """Say `text` and write the answer piece by piece.

        Raises:
            SglActorsError: what the node answered instead, such as that the conversation is too long.
        """
        turn = ChatMessage("user", text)
        parts: list[str] = []
        request = Generate(
            id=f"chat-{secrets.token_hex(8)}",
            messages=[*self.messages, turn],
            sampling=SamplingOptions(
                max_tokens=self.settings.max_tokens,
                temperature=self.settings.temperature,
                seed=self.settings.seed,
            ),
            program="chat",
        )
        try:
            async with aclosing(
                cast("AsyncGenerator[Chunk, None]", node.generate(request, trace=request.id))
            ) as chunks:
                async for chunk in chunks:
                    parts.append(chunk.text)
                    write(chunk.text)
        except SglActorsError:
            parts.clear()
            raise
        finally:
            if parts:
                self.messages += [turn, ChatMessage("assistant", "".join(parts))]


async def chat_in_terminal(
    settings: Settings, *, node: str | None, config: Path | None, model: str | None
) -> int:
    """Read turns from stdin until it ends; answers go to stdout, everything else to stderr. Returns the exit code."""
    async with _node(node, config, model) as context:
        talking = NodeClient(context)
        info = await talking.model()
        terminal = Terminal(sys.stdin.fileno())
        if terminal.interactive:
            print(f"{info.served_name}, context {info.context:,} tokens. {HELP}", file=sys.stderr)
        with terminal.interruptible():
            return await _converse(Conversation(settings), talking, terminal)


async def _converse(conversation: Conversation, node: NodeClient, terminal: Terminal) -> int:
    while True:
        try:
            line = await terminal.ask("> ")
        except asyncio.CancelledError:
            if not terminal.interrupted():
                raise
            return INTERRUPTED
        if line is None:
            return 0
        match line.strip():
            case "":
                continue
            case "/quit":
                return 0
            case "/clear":
                conversation.clear()
            case text if text.startswith("/"):
                print(HELP, file=sys.stderr)
            case text:
                await _answer(conversation, node, text, terminal)


async def _answer(conversation: Conversation, node: NodeClient, text: str, terminal: Terminal) -> None:
    """One answer; at a terminal, Ctrl-C ends it and not the conversation."""
    try:
        with terminal.quiet():
            await conversation.answer(node, text, _write)
    except asyncio.CancelledError:
        if not terminal.interrupted():
            raise
    except SglActorsError as error:
        print(f"sgl-actors: {error.message}", file=sys.stderr)
    finally:
        _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@asynccontextmanager
async def _node(node: str | None, config: Path | None, model: str | None) -> AsyncIterator[Context]:
    """The running node's client; a node of our own if none runs and none was named, or if a model was."""
    if model is None:
        try:
            record = find(node, config)
        except NotReady:
            if node is not None:
                raise
        else:
            async with client(record) as context:
                yield context
            return
    from sgl_actors.actors.node.embedded import open_node

    print("starting a node for this conversation …", file=sys.stderr)
    flags = {} if model is None else {"model.path": model}
    handle = await open_node(None if config is None else str(config), flags=flags)
    try:
        yield handle.context("chat")
    finally:
        await handle.close()
