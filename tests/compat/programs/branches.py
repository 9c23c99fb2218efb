"""Copies, scopes, both ways of joining, variables that the body sets, and threads of its own."""
# mypy: ignore-errors

import threading

import sglang as sgl

sgl.global_config.enable_parallel_encoding = False


class Kept:
    """Something that is no plain data."""


@sgl.function
def branches(s):
    kept = Kept()
    s["kept"], s["list"] = kept, [1]
    s["list"].append(2)
    with s.var_scope("opening"):
        s += "The sea is" + sgl.gen("sea", max_tokens=4)
    with s.copy() as c:
        c += " and" + sgl.gen("tried", max_tokens=4)
    forks = s.fork(3)
    forks += [f" ({word})" for word in ("one", "two", "three")]
    for f in forks:
        f += sgl.gen("word", max_tokens=3)
        f["mark"] = f["word"].upper()
    forks[1]["only"] = "second"
    forks[0]["sea"] = "not this one"
    forks.join()
    more = s.fork(2)
    workers = [threading.Thread(target=work, args=(more[i], i)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    more.join("concate_and_append")
    s += " End" + sgl.gen("end", max_tokens=2)
    assert s["kept"] is kept
    assert "end" in s or s["end"] is not None
    assert "nowhere" not in s


def work(s, number):
    s += f" [{number}]" + sgl.gen(f"part{number}", max_tokens=3)
    assert s[f"part{number}"] is not None


def main():
    state = branches.run(temperature=0)
    names = ["opening", "sea", "tried", "word", "mark", "only", "list", "end"]
    return {
        **{name: state[name] for name in names},
        "text": state.text(),
        "part": "part0" in state,
        "error": state.error(),
    }
