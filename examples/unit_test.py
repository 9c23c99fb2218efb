"""Testing a program without a model: `Mock` answers from a script and keeps what it was asked. `python -m pytest` runs it, too."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import sgl_actors as sgl


@sgl.function
async def reply(s: sgl.ProgramState, message: str) -> str:
    """The program under test: it writes drafts only for complaints, and keeps the shorter one."""
    s += sgl.user(f"Message: {message}")
    s += sgl.assistant("This is a " + sgl.select("kind", ["complaint", "question"]))
    if await s["kind"] == "question":
        return "A person will answer you."
    drafts = s.fork(2)
    drafts += sgl.user("Write an apology.") + sgl.assistant(sgl.gen("draft", max_tokens=40))
    texts: list[str] = await drafts.join("draft")
    return min(texts, key=len)


async def test_a_complaint_gets_the_shorter_draft() -> sgl.Mock:
    mock = sgl.Mock({"kind": "complaint", "draft": ["We are very sorry indeed.", "Sorry!"]})
    state = await reply.bind("It broke.").run(backend=mock)
    assert state.value == "Sorry!"
    assert "Message: It broke." in mock.calls[0].prompt
    assert [call.max_tokens for call in mock.calls if call.name == "draft"] == [40, 40]
    mock.assert_done()
    return mock


async def test_a_question_goes_to_a_person() -> sgl.Mock:
    mock = sgl.Mock({"kind": {"complaint": 0.4, "question": 0.6}})
    state = await reply.bind("How do I open it?").run(backend=mock)
    assert state.value == "A person will answer you."
    assert state.usage.completion_tokens == 0
    mock.assert_done()
    return mock


async def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    for test in (test_a_complaint_gets_the_shorter_draft, test_a_question_goes_to_a_person):
        mock = await test()
        print(f"{test.__name__}: passed")
        for call in mock.calls:
            print(f"  {call.kind} {call.name} of stream {call.path}: {call.answer!r}")


if __name__ == "__main__":
    asyncio.run(main())
