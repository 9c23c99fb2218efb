"""Examples, then a question: one program over a batch of dictionaries, of tuples, and one by one."""
# mypy: ignore-errors

import sglang as sgl

EXAMPLES = "".join(f"Q: {a} + {b} = ?\nA: {a + b}\n" for a, b in [(1, 2), (3, 4), (5, 2), (2, 6), (4, 4)])


@sgl.function
def add(s, examples, question, end="\n"):
    s += examples
    s += "Q: " + question + "\nA:" + sgl.gen("answer", max_tokens=4, stop=end)


def main():
    questions = [f"{n} + {n + 1} = ?" for n in range(1, 5)]
    by_name = add.run_batch(
        [{"examples": EXAMPLES, "question": q} for q in questions], temperature=0, num_threads=4
    )
    by_place = add.run_batch([(EXAMPLES, q) for q in questions], temperature=0)
    bound = add.bind(examples=EXAMPLES, end="\n").run_batch(
        [{"question": q} for q in questions], temperature=0, num_threads=1
    )
    lazily = add.run_batch([(EXAMPLES, q, "\n") for q in questions], temperature=0, generator_style=True)
    answers = [[state["answer"] for state in states] for states in (by_name, by_place, bound, lazily)]
    return {"answers": answers, "empty": add.run_batch([])}
