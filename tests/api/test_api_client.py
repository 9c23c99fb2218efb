"""An API model as programs ask it: what becomes of their requests, and of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sgl_actors.actors.programs.api_client import ApiClient
from sgl_actors.actors.programs.api_hosts import describe
from sgl_actors.actors.programs.local_kernel import LocalKernel, open_kernel
from sgl_actors.actors.scheduler.messages import Finish
from sgl_actors.actors.tokenizer.messages import ChatMessage, Chunk, Generate, SamplingOptions, Tokenize
from sgl_actors.actors.worker.messages import TokenLogprob
from sgl_actors.errors import ActorDown, BrokenAnswer, DeadlineExceeded, InvalidRequest, NoContinuation
from sgl_actors.lang.backends.capabilities import NONE, PREFILL, Capabilities
from sgl_actors.lang.backends.vendor import Ask, Completion, End, Text, Tokens
from sgl_actors.lang.errors import Unsupported
from sgl_actors.lang.protocols import Call
from sgl_actors.lang.trace import Prices
from tests.api.fake_vendor import FakeApiActor, FakeVendor, end

NAME = "api/test"
CONFIG = {
    "api": {
        "options": {
            "provider": "openai",
            "model": "m",
            "prices": Prices(input=1e6, output=1e6),
            "concurrency": 9,
        },
        "key": "sk-1",
    }
}
GEN = Call("gen", "a", position=(3,))


@pytest.fixture
async def kernel() -> AsyncIterator[LocalKernel]:
    kernel = await open_kernel(force_codec=True)
    yield kernel
    await kernel.close()


async def client_of(kernel: LocalKernel, vendor: FakeVendor, patience: float = 0.0) -> ApiClient:
    """A client of the vendor."""
    FakeApiActor.chosen = vendor
    await kernel.host(FakeApiActor, NAME, CONFIG)
    context = kernel.context("asker")
    return ApiClient(context, NAME, await describe(context, NAME), patience=patience)


def request(**fields: Any) -> Generate:
    fields.setdefault("sampling", SamplingOptions(max_tokens=8))
    return Generate("r1", program="p1", **{"text": "Hi", **fields})


async def chunks(client: ApiClient, call: Call = GEN, **fields: Any) -> list[Chunk]:
    return [chunk async for chunk in client.generate(request(**fields), call=call)]


async def parts(client: ApiClient, count: int, first: int = 0) -> list[Chunk]:
    """All parts of one gen, as a stream asks for them."""
    calls = [GEN._replace(completions=count, part=first + part) for part in range(count)]
    return await asyncio.gather(*(client.complete(request(), call=call) for call in calls))


async def test_an_answer_is_one_chunk_with_all_that_is_known(kernel: LocalKernel) -> None:
    """Text, why it ended, tokens, log probabilities with their texts, retries and cost."""
    values = (TokenLogprob(-1, -0.1), TokenLogprob(-1, -0.2))
    whole = End((Completion("Par is", Finish("length"), values, ("Par", " is")),), Tokens(7, 3, 2))
    vendor = FakeVendor([BrokenAnswer("cut"), whole])
    client = await client_of(kernel, vendor)
    (chunk,) = await chunks(client, logprobs=True, top_logprobs=1)
    assert (chunk.text, chunk.finish, chunk.token_ids) == ("Par is", Finish("length"), [])
    assert (chunk.prompt_tokens, chunk.cached_tokens, chunk.completion_tokens) == (7, 3, 2)
    assert (chunk.logprobs, chunk.tokens) == (list(values), ["Par", " is"])
    assert (chunk.retries, chunk.cost) == (1, 9.0)
    assert vendor.asked[1] == Ask(
        text="Hi", sampling=SamplingOptions(max_tokens=8), logprobs=True, top_logprobs=1
    )


async def test_what_a_call_says_goes_along(kernel: LocalKernel) -> None:
    """Chats, tools, a turn to go on with, and that somebody reads."""
    vendor = FakeVendor([end("x")])
    client = await client_of(kernel, vendor)
    messages = [ChatMessage("user", "Hi"), ChatMessage("assistant", "Well")]
    await chunks(
        client, GEN._replace(live=True, tools="[]"), text=None, messages=messages, continue_final=True
    )
    (ask,) = vendor.asked
    assert (ask.text, ask.messages, ask.continue_final) == (None, tuple(messages), True)
    assert (ask.tools, ask.stream) == ("[]", True)


async def test_live_text_comes_in_pieces(kernel: LocalKernel) -> None:
    """What was handed out is not in the last chunk again; merged they are the whole answer."""
    steps = [Text("Par"), Text("is"), end("Paris!")]
    client = await client_of(kernel, FakeVendor([steps, steps]))
    found = await chunks(client, GEN._replace(live=True))
    assert "".join(chunk.text for chunk in found) == "Paris!"
    assert len(found) >= 2
    assert [chunk.finish is not None for chunk in found] == [False] * (len(found) - 1) + [True]
    whole = await client.complete(request(), call=GEN._replace(live=True))
    assert (whole.text, whole.prompt_tokens, whole.completion_tokens) == ("Paris!", 10, 5)


# -- several completions ------------------------------------------------------------------------------------


async def test_completions_of_one_gen_are_one_request(kernel: LocalKernel) -> None:
    """Each part has its own text; prompt and cost count once, and the shares of the output add up."""
    vendor = FakeVendor([end("a", "bbb", "cc", output=10)], count=8)
    client = await client_of(kernel, vendor)
    found = await parts(client, 3)
    assert [chunk.text for chunk in found] == ["a", "bbb", "cc"]
    assert [chunk.prompt_tokens for chunk in found] == [10, 0, 0]
    assert [chunk.cost for chunk in found] == [20, 0, 0]
    assert [chunk.completion_tokens for chunk in found] == [1, 5, 4]
    assert [ask.count for ask in vendor.asked] == [3]


async def test_more_completions_than_a_request_may_have_are_several_requests(kernel: LocalKernel) -> None:
    """They are asked for in as few requests as it takes."""
    vendor = FakeVendor(lambda ask: end(*["x"] * ask.count), count=2)
    client = await client_of(kernel, vendor)
    assert len(await parts(client, 5)) == 5
    assert sorted(ask.count for ask in vendor.asked) == [1, 2, 2]


async def test_a_gen_may_be_asked_again(kernel: LocalKernel) -> None:
    """The parts of a second round are a request of their own, as are those of a first one that is repeated."""
    answers = [end("a", "b"), end("c", "d"), end("e", "f")]
    client = await client_of(kernel, FakeVendor(answers, count=8))
    rounds = [await parts(client, 2), await parts(client, 2, first=2), await parts(client, 2)]
    assert [[chunk.text for chunk in one] for one in rounds] == [["a", "b"], ["c", "d"], ["e", "f"]]


async def test_an_error_is_that_of_all_parts(kernel: LocalKernel) -> None:
    """Each part raises it by itself, and the next time all are asked for anew."""
    client = await client_of(kernel, FakeVendor([InvalidRequest("no"), end("a"), end("b", "c")], count=8))
    calls = [GEN._replace(completions=2, part=part) for part in range(2)]
    asked = (client.complete(request(), call=call) for call in calls)
    one, two = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(one, InvalidRequest)
    assert isinstance(two, InvalidRequest)
    assert one is not two
    with pytest.raises(BrokenAnswer, match="1 completions came of 2"):
        await parts(client, 2)
    assert [chunk.text for chunk in await parts(client, 2)] == ["b", "c"]


async def test_a_request_lives_as_long_as_one_part_waits(kernel: LocalKernel) -> None:
    """A part that goes takes nothing with it; when the last one goes, the request ends."""
    go, begun = asyncio.Event(), asyncio.Event()
    left = asyncio.Event()
    vendor = FakeVendor(lambda ask: [begun.set, go, end("a", "b")], count=8)
    client = await client_of(kernel, vendor)
    calls = [GEN._replace(completions=2, part=part) for part in range(2)]

    async def both() -> list[asyncio.Task[Chunk]]:
        begun.clear()
        tasks = [asyncio.create_task(client.complete(request(), call=call)) for call in calls]
        await begun.wait()
        return tasks

    one, two = await both()
    one.cancel()
    await asyncio.wait([one])
    go.set()
    assert (await two).text == "b"
    go.clear()
    tasks = await both()
    vendor.on_left = left.set
    for task in tasks:
        task.cancel()
    await left.wait()
    assert (vendor.running, len(vendor.asked)) == (0, 2)


# -- what else there is -------------------------------------------------------------------------------------


async def test_given_text_is_scored(kernel: LocalKernel) -> None:
    """Log probabilities of the prompt come with the texts of its tokens; a model that tells none is named."""
    values = (TokenLogprob(-1, None), TokenLogprob(-1, -0.5))
    vendor = FakeVendor(
        [End((Completion("", Finish("length")),), Tokens(2), values, ("Hi", "!"))], scoring=True
    )
    client = await client_of(kernel, vendor)
    asked = request(sampling=SamplingOptions(max_tokens=0), prompt_logprobs_start=0)
    chunk = await client.complete(asked, call=Call("select", "x"))
    assert (chunk.prompt_logprobs, chunk.tokens) == (list(values), ["Hi", "!"])
    assert vendor.asked[0].score
    vendor.capabilities = Capabilities()
    await client._learn()
    with pytest.raises(Unsupported, match="fake model reports no log probabilities of given text"):
        await client.complete(asked)


async def test_nothing_is_asked_for_a_prefix(kernel: LocalKernel) -> None:
    """To compute a prompt beforehand would cost and be of no use."""
    vendor = FakeVendor()
    client = await client_of(kernel, vendor)
    chunk = await client.complete(request(sampling=SamplingOptions(max_tokens=0)), call=Call("prefix"))
    assert chunk.finish == Finish("length")
    assert vendor.asked == []


async def test_chats_are_rendered_on_our_side(kernel: LocalKernel) -> None:
    """By the server's template for a model that goes on with text, without ids; a model that has none is told how to be given one."""
    vendor = FakeVendor()
    vendor.chat = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ bos }}{% endif %}",
        {"bos": "<s>"},
    )
    client = await client_of(kernel, vendor)
    chat = [ChatMessage("user", "Hi")]
    rendered = await client.tokenize(Tokenize(messages=chat))
    assert (rendered.token_ids, rendered.text) == ([], "[user]Hi<s>")
    assert (await client.tokenize(Tokenize(messages=chat, add_generation_prompt=False))).text == "[user]Hi"
    with pytest.raises(Unsupported, match="tells no token ids"):
        await client.tokenize(Tokenize(text="Hi"))


async def test_a_model_without_a_template(kernel: LocalKernel) -> None:
    """Of one that goes on with text it has to be given; of others ChatML is good enough to look at."""
    vendor = FakeVendor(tokenizer=True)
    client = await client_of(kernel, vendor)
    chat = Tokenize(messages=[ChatMessage("user", "Hi")])
    with pytest.raises(Unsupported, match="chat_template="):
        await client.tokenize(chat)
    assert (await client.tokenize(Tokenize(text="ab"))).token_ids == [97, 98]
    vendor.capabilities = Capabilities(continuation=NONE)
    await client._learn()
    assert (await client.tokenize(chat)).text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


async def test_what_an_api_cannot_do(kernel: LocalKernel) -> None:
    """Pins and token ids are refused with who can; its cache is not ours to empty."""
    client = await client_of(kernel, FakeVendor(images=True))
    with pytest.raises(Unsupported, match="fake model pins no prefixes"):
        await client.pin([1], ttl=1.0)
    with pytest.raises(Unsupported, match="takes text, not token ids"):
        await client.complete(request(text=None, input_ids=[1]))
    assert not (await client.flush()).done
    assert client.takes == {"image"}


async def test_a_model_that_learns_is_known_anew(kernel: LocalKernel) -> None:
    """When it turns out that it does not go on with a turn, `api` says so from then on."""
    vendor = FakeVendor(continuation=PREFILL)

    def refuse() -> None:
        vendor.capabilities = Capabilities(continuation=NONE)

    vendor.answers = [[refuse, NoContinuation("not this one")]]
    client = await client_of(kernel, vendor)
    assert client.api.capabilities.continuation == PREFILL
    with pytest.raises(NoContinuation):
        await chunks(client)
    assert client.api.capabilities.continuation == NONE


# -- its actor ends -----------------------------------------------------------------------------------------


async def test_a_request_outlives_its_actor(kernel: LocalKernel) -> None:
    """If nothing was handed out yet, it is asked again of the next one."""
    begun = asyncio.Event()
    vendor = FakeVendor([[begun.set, asyncio.Event()], end("Paris")])
    client = await client_of(kernel, vendor, patience=30.0)
    task = asyncio.create_task(client.complete(request(), call=GEN))
    await begun.wait()
    cell = kernel._system.cells[NAME]
    cell.stop("killed")
    await cell.ended.wait()
    await kernel.host(FakeApiActor, NAME, CONFIG)
    assert (await task).text == "Paris"


async def test_text_that_was_handed_out_is_not_asked_for_again(kernel: LocalKernel) -> None:
    """Its successor might say something else, so the request ends with it; so does one that nobody succeeds."""
    client = await client_of(kernel, FakeVendor([[Text("Par"), asyncio.Event()]]), patience=30.0)
    stream = client.generate(request(), call=GEN._replace(live=True))
    assert (await anext(stream)).text == "Par"
    cell = kernel._system.cells[NAME]
    cell.stop("killed")
    with pytest.raises(ActorDown):
        await anext(stream)
    impatient = ApiClient(kernel.context("other"), NAME, client._info, patience=0.0)
    with pytest.raises(ActorDown):
        await impatient.complete(request(), call=GEN)
    with pytest.raises(DeadlineExceeded):
        await client.complete(request(), call=GEN, timeout=0.0)
