"""`select` by each of its methods, and a `gen` that is one."""
# mypy: ignore-errors

import sglang as sgl


@sgl.function
def capital(s, method):
    s += "The capital of France is the city of"
    s += sgl.select("city", choices=[" Paris", " Rome", " Oslo"], choices_method=method)
    s += ". The capital of Italy is the city of"
    s += sgl.gen("other", choices=[" Paris", " Rome", " Oslo"])
    s += "."


def main():
    found = {}
    methods = [
        sgl.token_length_normalized,
        sgl.greedy_token_selection,
        sgl.unconditional_likelihood_normalized,
    ]
    for number, method in enumerate(methods):
        state = capital.run(method=method)
        meta = state.get_meta_info("city")
        found[number] = [state["city"], state["other"], len(meta["normalized_prompt_logprobs"])]
        for entries in meta["input_token_logprobs"]:
            for logprob, token, _text in entries:
                assert isinstance(logprob, float)
                assert isinstance(token, int)
    return found
