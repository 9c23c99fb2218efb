"""The sync flavour: the same language without `async`. A program written for SGLang runs with this import and no other change."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import sgl_actors.compat as sgl


@sgl.function
def text_qa(s: sgl.ProgramState, question: str) -> None:
    s += "Q: What is the capital of Peru?\nA: Lima.\n"
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n", max_tokens=16)


@sgl.function
def tips(s: sgl.ProgramState, topic: str) -> None:
    s += sgl.user("Two tips on " + topic + ": 1. Start early. 2. Take breaks.")
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += sgl.user(f"Now, expand tip {i + 1} in one sentence.")
        f += sgl.assistant(sgl.gen("detail", max_tokens=24, stop="\n"))
    s += sgl.assistant("1. " + forks[0]["detail"] + "\n2. " + forks[1]["detail"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running node; an embedded one without")
    options = parser.parse_args(argv)
    if options.url:
        sgl.set_default_backend(sgl.RuntimeEndpoint(options.url))
    questions = ["What is the capital of France?", "What is the capital of Japan?"]
    batch = [{"question": question} for question in questions]
    for question, state in zip(questions, text_qa.run_batch(batch, temperature=0), strict=True):
        print(f"{question}{state['answer']}")
    state = text_qa.run("What is the capital of Italy?", temperature=0, stream=True)
    for piece in state.text_iter("answer"):
        print(piece, end="|", flush=True)
    print(f"\n{tips.run('learning to swim', temperature=0).messages()[-1]['content']}")


if __name__ == "__main__":
    main()
