"""Text that is read while it is written: of one variable, of the whole prompt, and by a caller with an event loop."""
# mypy: ignore-errors

import asyncio

import sglang as sgl


@sgl.function
def tale(s, topic):
    s += "A tale about " + topic + ":" + sgl.gen("tale", max_tokens=12)
    s += "\nIts moral:" + sgl.gen("moral", max_tokens=6)


async def read(state):
    return [piece async for piece in state.text_async_iter("moral")]


def main():
    whole = tale.run(topic="a fox", temperature=0)
    by_variable = tale.run(topic="a fox", temperature=0, stream=True)
    tale_pieces = list(by_variable.text_iter("tale"))
    by_prompt = tale.run(topic="a fox", temperature=0, stream=True)
    prompt_pieces = list(by_prompt.text_iter())
    by_loop = tale.run(topic="a fox", temperature=0, stream=True)
    moral_pieces = asyncio.run(read(by_loop))
    assert list(whole.text_iter("tale")) == [whole["tale"]]
    return {
        "tale": "".join(tale_pieces) == whole["tale"] == by_variable["tale"],
        "prompt": "".join(prompt_pieces) == whole.text(),
        "moral": "".join(moral_pieces) == whole["moral"],
        "text": whole.text(),
        "missing": list(by_prompt.text_iter("nothing")),
    }
