"""Checking requests before anything is computed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from sgl_actors.actors.scheduler.messages import ModelInfo, Sequence
from sgl_actors.actors.tokenizer import prompts
from sgl_actors.actors.tokenizer.admission import admit, check
from sgl_actors.actors.tokenizer.messages import ChatMessage, Generate, SamplingOptions
from sgl_actors.actors.tokenizer.vocabulary import Vocabulary
from sgl_actors.errors import ContextLengthExceeded, InvalidRequest
from sgl_actors.lang.constraints.constraint import Constraint

MODEL = ModelInfo("m", "p", "LlamaForCausalLM", 100, 1000, (7,), 1000, 1, 1, "float32", "cpu", 2)


def admitted(prompt: list[int], model: ModelInfo = MODEL, **fields: Any) -> Sequence:
    fields.setdefault("max_tokens", 16)
    options = {name: fields.pop(name) for name in list(fields) if name in SamplingOptions.__struct_fields__}
    request = Generate("r", input_ids=prompt, sampling=SamplingOptions(**options), **fields)
    check(request)
    return admit(request, prompt, model=model, eos_ids=(2, 0), seed=11, timeout=5.0, trace="t")


def test_every_field_arrives() -> None:
    """The sequence says what the request said."""
    sequence = admitted(
        [1, 2], max_tokens=9, min_tokens=3, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, frequency_penalty=1.0,
        presence_penalty=-1.0, repetition_penalty=1.2, logit_bias=((5, -100.0),), seed=42, logprobs=True, top_logprobs=5,
        prompt_logprobs_start=0, output=[8], tenant="acme", program="p",
    )  # fmt: skip
    assert (sequence.id, sequence.prompt, sequence.output, sequence.max_tokens) == ("r", [1, 2], [8], 9)
    assert (sequence.tenant, sequence.program, sequence.trace, sequence.timeout) == ("acme", "p", "t", 5.0)
    assert msgspec.structs.astuple(sequence.logprobs) == (True, 5, 0)
    assert msgspec.structs.asdict(sequence.sampling) == {
        "seed": 42, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "frequency_penalty": 1.0, "presence_penalty": -1.0,
        "repetition_penalty": 1.2, "min_tokens": 3, "end_ids": (0, 2), "logit_bias": ((5, -100.0),), "constraint": None,
            "jump_forward": True,
    }  # fmt: skip


def test_end_ids() -> None:
    """The model's end tokens and the request's stop ids end an output; ignore_eos takes out the model's only, and nothing under a constraint."""
    assert admitted([1], stop_token_ids=(9, 2)).sampling.end_ids == (0, 2, 9)
    assert admitted([1], stop_token_ids=(9, 2), ignore_eos=True).sampling.end_ids == (2, 9)
    constraint = Constraint("regex", "a")
    assert admitted([1], ignore_eos=True, constraint=constraint).sampling.end_ids == (0, 2)


def test_seed() -> None:
    """The asker's seed counts, any integer of it, else the drawn one."""
    assert admitted([1]).sampling.seed == 11
    assert admitted([1], seed=0).sampling.seed == 0
    assert admitted([1], seed=-1).sampling.seed == 2**63 - 1


def test_max_tokens_none_is_what_the_context_leaves() -> None:
    """Without max_tokens the context sets the limit, or the KV pool where it holds less."""
    assert admitted([1] * 10, max_tokens=None).max_tokens == 90
    small = msgspec.structs.replace(MODEL, pages=8, page_size=4)
    assert admitted([1] * 10, small, max_tokens=None).max_tokens == 22


def test_a_prompt_that_just_fits() -> None:
    """Prompt and output may fill the context to the last token."""
    assert admitted([1] * 60, max_tokens=40).max_tokens == 40
    assert admitted([1] * 100, max_tokens=0).max_tokens == 0


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "says"),
    [
        (60, 41, "context is 100 tokens, but 101 are needed: 60 in the prompt and 41"),
        (101, 0, "101 in the prompt"),
        (100, None, "at least 1"),
    ],
)
def test_too_long_says_both_numbers(prompt: int, max_tokens: int | None, says: str) -> None:
    """What does not fit is refused with what is needed and what there is, never cut."""
    with pytest.raises(ContextLengthExceeded, match=says):
        admitted([1] * prompt, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (-0.1, 100.5, math.nan, math.inf)],
        *[("top_p", value) for value in (0.0, -1.0, 1.01, math.nan)],
        *[("top_k", value) for value in (0, -2)],
        *[("min_p", value) for value in (-0.1, 1.1, math.nan)],
        *[("frequency_penalty", value) for value in (-2.1, 2.1, math.inf)],
        *[("presence_penalty", value) for value in (-2.1, 2.1, math.nan)],
        *[("repetition_penalty", value) for value in (0.0, -1.0, math.inf)],
        ("max_tokens", -1),
        *[("min_tokens", value) for value in (-1, 129)],
        *[("stop", value) for value in (("",), ("x" * 1025,), ("x",) * 65)],
        *[("stop_token_ids", value) for value in ((1000,), (-1,), (1,) * 4097)],
        *[("logit_bias", value) for value in (((1000, 1.0),), ((1, 101.0),), ((1, math.nan),), ((1, 0.0),) * 4097)],
        *[("top_logprobs", value) for value in (-1, 101)],
        *[("prompt_logprobs_start", value) for value in (-2, 4)],
        *[("output", value) for value in ([1000], [-1])],
    ],
)  # fmt: skip
def test_a_value_out_of_range_names_its_field(field: str, value: object) -> None:
    """Each field outside its range is an error with that field in `param`."""
    with pytest.raises(InvalidRequest) as caught:
        admitted([1, 2, 3], msgspec.structs.replace(MODEL, context=1000), **{field: value})
    assert caught.value.param == field


def test_the_edges_are_allowed() -> None:
    """The ends of the ranges are in them."""
    admitted(
        [999], temperature=0.0, top_p=1.0, top_k=1, min_p=1.0, frequency_penalty=-2.0, presence_penalty=2.0, max_tokens=5,
        min_tokens=5, stop=("x" * 1024,) * 64, logit_bias=((999, 100.0), (0, -100.0)), top_logprobs=100, prompt_logprobs_start=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Generate("", text="x"), "id"),
        (Generate("i" * 257, text="x"), "id"),
        (Generate("i"), "prompt"),
        (Generate("i", text="x", input_ids=[1]), "prompt"),
        (Generate("i", text=""), "prompt"),
        (Generate("i", input_ids=[]), "prompt"),
        (Generate("i", text="x", continue_final=True), "continue_final_message"),
    ],
)
def test_prompts_that_are_none(request_: Generate, param: str) -> None:
    """Exactly one prompt, not empty, with an id."""
    with pytest.raises(InvalidRequest) as caught:
        check(request_)
    assert caught.value.param == param
    check(Generate("i", messages=[ChatMessage("user", "x")]))


@pytest.mark.parametrize("prompt", [[1000], [-1], []])
def test_prompt_ids_outside_the_vocabulary(prompt: list[int]) -> None:
    """Ids the model does not know, or none at all, are refused."""
    with pytest.raises(InvalidRequest) as caught:
        admit(Generate("i", text="x"), prompt, model=MODEL, eos_ids=(), seed=0, timeout=0.0, trace="")
    assert caught.value.param == "prompt"


def test_a_text_too_long_for_any_tokens_is_refused_unread(vocabulary: Vocabulary) -> None:
    """A text that cannot fit whatever its tokens are is refused by its length alone, with both numbers."""
    room = 10 * vocabulary.longest
    prompts.check_size(Generate("r", text="a" * room), vocabulary, 10)
    with pytest.raises(ContextLengthExceeded, match="at least 11 tokens; the context is 10 tokens"):
        prompts.check_size(Generate("r", text="a" * (room + 1)), vocabulary, 10)
