"""A tree of thoughts: branches of branches, each scored, the best path taken; written as a recursion."""
# mypy: ignore-errors

import sglang as sgl


def propose(s, depth, width, path):
    if depth == 0:
        s += "Is it good? " + sgl.select("verdict", choices=["yes", "no"]) + "\n"
        return [(s["verdict"], path, s)]
    forks = s.fork(width)
    forks += lambda i: f"Plan {i + 1}:" + sgl.gen("plan", max_tokens=6, stop="\n") + "\n"
    found = []
    for i in range(width):
        found += propose(forks[i], depth - 1, width, [*path, i])
    return found


@sgl.function
def solve(s, question):
    s += "Question: " + question + "\n"
    leaves = propose(s, 2, 2, [])
    best = next((leaf for leaf in leaves if leaf[0] == "yes"), leaves[0])
    s["paths"] = [leaf[1] for leaf in leaves]
    s += "Best plan:" + best[2]["plan"] + "\nAnswer:" + sgl.gen("answer", max_tokens=6)


def main():
    state = solve.run(question="How many legs have two spiders?", temperature=0)
    return {"answer": state["answer"], "paths": state["paths"], "text": state.text()}
