"""A judge that looks at an essay from several sides at once, then chooses a grade (branch, solve, merge)."""
# mypy: ignore-errors

import sglang as sgl

SIDES = ["clarity", "originality", "evidence"]


@sgl.function
def judge(s, essay):
    s += sgl.system("You judge short essays.")
    s += sgl.user("The essay: " + essay + "\nJudge it.")
    forks = s.fork(len(SIDES))
    for f, side in zip(forks, SIDES, strict=True):
        f += sgl.assistant("As to its " + side + ": " + sgl.gen("remark", max_tokens=12, stop="."))
    forks.join()
    s += sgl.assistant_begin()
    for side, remark in zip(SIDES, s["remark"], strict=True):
        s += f"{side}: {remark.strip()}.\n"
    s += "Grade: " + sgl.select("grade", choices=["excellent", "fair", "poor"])
    s += sgl.assistant_end()


def main():
    state = judge.run(essay="Bees dance to say where flowers are.", temperature=0)
    return {
        "remarks": state["remark"],
        "grade": state["grade"],
        "text": state.text(),
        "messages": state.messages(),
    }
