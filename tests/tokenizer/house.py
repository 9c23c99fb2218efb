"""A kernel with a tokenizer, and a scheduler and a grammar actor that do what the test says."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from sgl_actors.actors.grammar.messages import Compile, Compiled
from sgl_actors.actors.microkernel import Actor, Context, Message, Request
from sgl_actors.actors.microkernel.system import Outside, System
from sgl_actors.actors.scheduler.messages import DescribeModel, ModelInfo, Progress, Sequence, Submit, Update
from sgl_actors.actors.tokenizer.actor import TokenizerActor
from sgl_actors.actors.tokenizer.messages import (
    Chunk,
    DescribeTokenizer,
    Generate,
    SamplingOptions,
    TokenizerInfo,
)
from sgl_actors.errors import NotReady, SglActorsError

A, B, END = 64, 65, 258
MODEL = ModelInfo("m", "p", "LlamaForCausalLM", 40_000, 300, (7,), 40_000, 1, 1, "float32", "cpu", 2)


class ScriptedScheduler(Actor):
    """Records what it is told, answers `DescribeModel`, and casts what the test has it cast."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.told: asyncio.Queue[Message] = asyncio.Queue()
        self.model: ModelInfo | None = MODEL

    async def receive(self, message: Message, request: Request) -> Message | None:
        if isinstance(message, DescribeModel):
            if self.model is None:
                raise NotReady("no worker")
            return self.model
        self.told.put_nowait(message)
        return None

    async def next(self) -> Message:
        async with asyncio.timeout(5):
            return await self.told.get()

    async def submitted(self) -> list[Sequence]:
        message = await self.next()
        assert isinstance(message, Submit), message
        return message.sequences

    def progress(self, *updates: Update) -> None:
        self.ctx.cast("tokenizer", Progress(list(updates)))


class ScriptedGrammar(Actor):
    """Records what it is to compile and answers as the test says; None answers later, or never."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.asked: asyncio.Queue[Request] = asyncio.Queue()
        self.answer: Message | SglActorsError | None = Compiled("fsm")

    async def receive(self, message: Message, request: Request) -> Message | None:
        assert isinstance(message, Compile)
        assert message.prepare
        self.asked.put_nowait(request)
        if isinstance(self.answer, SglActorsError):
            raise self.answer
        return self.answer

    async def next(self) -> Request:
        async with asyncio.timeout(5):
            return await self.asked.get()


class House:
    """A kernel with the tokenizer and a scheduler that can be stopped and started again."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.ctx = cast("Context", system.spawn(Outside, "asker").context)

    async def start(self, actor: type[Actor], name: str, config: dict[str, Any] | None = None) -> Any:
        merged = {**self.system.config, **(config or {})}
        cell = self.system.spawn(actor, name, merged, on_ready=self.system.name_up)
        await cell.ready.wait()
        return cell.actor

    async def stop(self, name: str) -> None:
        cell = self.system.cells[name]
        cell.stop("test")
        await cell.ended.wait()
        self.system.name_down(cell.address, "test")

    async def begin(self, config: dict[str, Any] | None = None) -> None:
        self.scheduler: ScriptedScheduler = await self.start(ScriptedScheduler, "scheduler")
        self.grammar: ScriptedGrammar = await self.start(ScriptedGrammar, "grammar")
        self.tokenizer: TokenizerActor = await self.start(TokenizerActor, "tokenizer", config)
        await self.model_known()

    async def model_known(self) -> None:
        async with asyncio.timeout(5):
            while self.tokenizer._served.info is None:
                await asyncio.sleep(0)

    def ask(self, id_: str = "r", credit: int = 64, **fields: Any) -> Asker:
        options = {
            name: fields.pop(name) for name in list(fields) if name in SamplingOptions.__struct_fields__
        }
        fields = fields or {"text": "ab"}
        if "text" not in fields and "messages" not in fields and "input_ids" not in fields:
            fields["text"] = "ab"
        request = Generate(id_, sampling=SamplingOptions(**options), **fields)
        return Asker(self.ctx, request, credit)

    async def settle(self) -> None:
        """Let every message on its way arrive: a round trip to the tokenizer comes after them."""
        await self.ctx.call("tokenizer", DescribeTokenizer(), TokenizerInfo)


class Asker:
    """Holds a stream open and reads from it when told to."""

    def __init__(self, ctx: Context, request: Generate, credit: int) -> None:
        self.stream = ctx.stream("tokenizer", request, timeout=20, credit=credit)
        self.first = asyncio.ensure_future(anext(self.stream))

    async def next(self) -> Chunk:
        async with asyncio.timeout(5):
            message = await self.first
            self.first = asyncio.ensure_future(anext(self.stream))
            await asyncio.sleep(0)
        return cast("Chunk", message)

    async def end(self) -> Chunk:
        """The last chunk; nothing follows it."""
        chunk = await self.next()
        assert chunk.finish is not None
        with pytest.raises(StopAsyncIteration):
            await self.next()
        return chunk

    async def error(self) -> object:
        async with asyncio.timeout(5):
            return (await asyncio.gather(self.first, return_exceptions=True))[0]

    async def close(self) -> None:
        self.first.cancel()
        await asyncio.gather(self.first, return_exceptions=True)
        await self.stream.aclose()  # type: ignore[attr-defined]
