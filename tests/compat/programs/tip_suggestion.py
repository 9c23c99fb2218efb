"""Two tips, each worked out in a branch of its own, then a summary: the skeleton comes first, its parts at the same time."""
# mypy: ignore-errors

import sglang as sgl


def expand(s, tip):
    s += (
        "Here is the tip in more words.\nTip: "
        + tip
        + "\nIn more words:"
        + sgl.gen("detail", max_tokens=12, stop="\n\n")
    )


@sgl.function
def suggest(s):
    s += "How to stay healthy: 1. Balanced diet. 2. Regular exercise.\n"
    forks = s.fork(2)
    expand(forks[0], "Balanced diet")
    expand(forks[1], "Regular exercise")
    s += "Tip 1:" + forks[0]["detail"] + "\n"
    s += "Tip 2:" + forks[1]["detail"] + "\n"
    s += "In summary" + sgl.gen("summary", max_tokens=12)


def main():
    state = suggest.run(temperature=0)
    return {"summary": state["summary"], "text": state.text()}
