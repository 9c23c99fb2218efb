"""A chat of several turns, with roles written in every form there is."""
# mypy: ignore-errors

import sglang as sgl


@sgl.function
def chat(s, first, second, third):
    s += sgl.system("You answer in one short sentence.")
    s += sgl.user(first)
    s += sgl.assistant(sgl.gen("first", max_tokens=10))
    s += sgl.user_begin()
    s += second
    s += sgl.user_end()
    s += sgl.assistant_begin() + sgl.gen("second", max_tokens=10) + sgl.assistant_end()
    with s.user():
        s += "And now: "
        s += third
    with s.assistant():
        s += "Well, " + sgl.gen("third", max_tokens=10)
    s.user("Thanks.")
    s.assistant(sgl.gen("last", max_tokens=4))


def main():
    state = chat.run("Hello!", second="What is the sea?", third="Who are you?", temperature=0)
    meta = state.get_meta_info("last")
    return {
        "text": state.text(),
        "messages": state.messages(),
        "answers": [state[name] for name in ("first", "second", "third", "last")],
        "tokens": meta["completion_tokens"],
        "finish": meta["finish_reason"]["type"],
        "nothing": state.get_meta_info("none"),
    }
