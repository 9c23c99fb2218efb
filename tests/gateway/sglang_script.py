"""Run by an interpreter that has sglang 0.5.3.post3: drives a gateway with its stock client, prints what came as JSON.

Usage: ``python sglang_script.py http://host:port``. Each assertion is one of the client's expectations.
"""
# mypy: ignore-errors

from __future__ import annotations

import json
import sys

import sglang as sgl
from sglang.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)


@sgl.function
def answer(s, question):
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0, stop="\n"))


@sgl.function
def judge(s, method):
    s += "The capital of France is a city. "
    s += "Its name is " + sgl.select("name", choices=["Paris", "Parsley", "Rome"], choices_method=method)


@sgl.function
def branches(s):
    s += "Three words about the sea, one by one. They are chosen with care and written down here: "
    forks = s.fork(3)
    for number, fork in enumerate(forks):
        fork += f"{number + 1}. " + sgl.gen("word", max_tokens=4, temperature=0)
    forks.join()
    s += "Done: " + sgl.gen("end", max_tokens=2, temperature=0)


def main(url: str) -> dict:
    backend = sgl.RuntimeEndpoint(url, chat_template_name="chatml")
    sgl.set_default_backend(backend)
    found = {"model": backend.get_model_name(), "server": sorted(backend.get_server_info())}
    backend.flush_cache()

    state = answer.run(question="What is the sea?")
    found["answer"] = state["answer"]
    meta = state.get_meta_info("answer")
    assert meta["completion_tokens"] <= 8
    assert meta["finish_reason"]["type"] in ("stop", "length")

    streamed = answer.run(question="What is the sea?", stream=True)
    found["streamed"] = "".join(streamed.text_iter("answer"))
    assert found["streamed"] == found["answer"], found
    found["cached"] = streamed.get_meta_info("answer")["cached_tokens"]
    assert found["cached"] > 0

    methods = [token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized]
    for method in methods:
        state = judge.run(method=method)
        found[type(method).__name__] = state["name"]
        for entries in state.get_meta_info("name")["input_token_logprobs"]:
            assert all(isinstance(value, float) for value, _, _ in entries), entries

    state = branches.run()
    found["words"] = list(state["word"])
    assert len(found["words"]) == 3
    assert isinstance(state["end"], str)

    batch = answer.run_batch(
        [{"question": "One?"}, {"question": "Two?"}, {"question": "Three?"}], num_threads=3
    )
    found["batch"] = [state["answer"] for state in batch]

    state = answer.run(question="Scores?", return_logprob=True, top_logprobs_num=2)
    meta = state.get_meta_info("answer")
    assert len(meta["output_token_logprobs"]) == meta["completion_tokens"]
    assert len(meta["output_top_logprobs"][0]) == 2
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))  # noqa: T201 - its answer
