"""What a model cannot do is said at the primitive, with who can."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.backends import anthropic, gemini, openai_models
from sgl_actors.lang.backends.asked import (
    CAN,
    LOGIT_BIAS,
    LOGPROBS,
    OURS,
    SCHEMA,
    WAYS,
    check_asked,
    check_media,
    check_select,
)
from sgl_actors.lang.backends.capabilities import PREFILL, TEXT, Capabilities
from sgl_actors.lang.choices import METHODS
from sgl_actors.lang.constraints.constraint import CHOICE, JSON_SCHEMA, KINDS, LARK, REGEX, Constraint
from sgl_actors.lang.errors import Unsupported, UnsupportedMedia
from sgl_actors.lang.ir import IMAGE, VIDEO, Gen, Media, Select

TITLE = "openai gpt-4o (chat)"
CHAT = Capabilities()
OTHERS: dict[str, Any] = {
    "min_tokens": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "frequency_penalty": 1.0, "presence_penalty": 1.0,
    "repetition_penalty": 1.1, "stop_token_ids": (1,), "ignore_eos": True, "skip_special_tokens": False, "logit_bias": ((1, 1.0),),
}  # fmt: skip
FREE: dict[str, Any] = {
    "max_tokens": 4, "stop": tuple("abcdef"), "stop_regex": ("[0-9]",), "no_stop_trim": True, "seed": 3, "jump_forward": False,
}  # fmt: skip


def asked(
    capabilities: Capabilities = CHAT,
    node: Gen | None = None,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> None:
    check_asked(
        "gen('x')", node or Gen("x"), SamplingOptions(**sampling, constraint=constraint), capabilities, TITLE
    )


def chosen(capabilities: Capabilities, method: str = METHODS[0]) -> str:
    return check_select("select('x')", Select("x", ("a", "b"), method), capabilities, TITLE)


def test_every_sampling_argument_has_a_place() -> None:
    """Each argument is ours to do, or is tried below; a new one has to be put somewhere."""
    assert {*OTHERS} | OURS == {*SamplingOptions.__struct_fields__}
    assert {*FREE, "constraint"} == OURS


@pytest.mark.parametrize("name", FREE)
def test_what_we_do_ourselves_is_always_fine(name: str) -> None:
    """Stops of any number and kind, limits and seeds need nothing of the model."""
    asked(Capabilities(stops=0, sampling=()), **{name: FREE[name]})


@pytest.mark.parametrize("name", OTHERS)
def test_an_argument_is_refused_by_a_model_that_does_not_take_it(name: str) -> None:
    """The error names primitive, model and argument; with the argument among the capabilities, or at its default, there is none."""
    with pytest.raises(
        Unsupported, match=rf"^gen\('x'\): openai gpt-4o \(chat\) takes no {name}; .* do(es)?$"
    ) as raised:
        asked(Capabilities(sampling=()), **{name: OTHERS[name]})
    assert raised.value.param == name
    asked(Capabilities(sampling=(name,)), **{name: OTHERS[name]})
    asked(Capabilities(sampling=()), **{name: getattr(SamplingOptions(), name)})


def test_the_error_says_who_can() -> None:
    """Others that take the argument are listed, so that the user knows where to go."""
    with pytest.raises(
        Unsupported, match=r"takes no top_k; anthropic, gemini, vllm, sglang, sgl-actors and llama\.cpp do$"
    ):
        asked(top_k=5)


def test_a_bias_is_fine_where_the_model_takes_one() -> None:
    """`Capabilities.logit_bias` says so, whatever `sampling` lists."""
    asked(Capabilities(logit_bias=True, sampling=()), logit_bias=((1, 1.0),))


@pytest.mark.parametrize("kind", KINDS)
def test_a_constraint_is_refused_by_a_model_that_does_not_follow_it(kind: str) -> None:
    """A kind that the model does not declare fails at the gen; a declared one does not."""
    constraint = Constraint(kind, "x")
    with pytest.raises(Unsupported, match=f"follows no constraint of kind {kind}; .* do(es)?$") as raised:
        asked(constraint=constraint)
    assert raised.value.param == kind
    asked(Capabilities(constraints=(kind,)), constraint=constraint)


def test_a_model_with_schemas_follows_json_schemas_alone() -> None:
    """`schema` is enough for a JSON schema and says nothing of other kinds."""
    model = Capabilities(schema=True)
    asked(model, constraint=Constraint(JSON_SCHEMA, "{}"))
    for kind in (REGEX, LARK, CHOICE):
        with pytest.raises(Unsupported):
            asked(model, constraint=Constraint(kind, "x"))


def test_tools_are_called_natively_or_written_under_their_schema() -> None:
    """A model that does neither cannot be given tools."""
    node, constraint = Gen("x", tools="[]"), Constraint(JSON_SCHEMA, "{}")
    asked(Capabilities(tools=True), node, constraint)
    asked(Capabilities(schema=True), node, constraint)
    asked(Capabilities(constraints=(JSON_SCHEMA,)), node, constraint)
    with pytest.raises(Unsupported, match=r"calls no tools, and follows no JSON schema; openai, .* do$"):
        asked(CHAT, node, constraint)


def test_log_probabilities_need_a_model_that_reports_them() -> None:
    """None, the own token's alone, and up to a number of alternatives are told apart."""
    plain, top = Gen("x", logprobs=True), Gen("x", logprobs=True, top_logprobs=5)
    with pytest.raises(Unsupported, match="reports no log probabilities; openai"):
        asked(CHAT, plain)
    asked(Capabilities(logprobs=0), plain)
    with pytest.raises(Unsupported, match="at most 4 top_logprobs, not 5"):
        asked(Capabilities(logprobs=4), top)
    asked(Capabilities(logprobs=5), top)


def test_log_probabilities_of_the_prompt_need_scoring() -> None:
    """They come of `echo`, which few have."""
    node = Gen("x", logprobs=True, prompt_logprobs_start=0)
    with pytest.raises(Unsupported, match="no log probabilities of the prompt; the completions of"):
        asked(Capabilities(logprobs=5), node)
    asked(Capabilities(logprobs=5, scoring=True), node)


@pytest.mark.parametrize(("kind", "capability"), [(IMAGE, "images"), (VIDEO, "videos")])
def test_media_need_a_model_that_looks_at_them(kind: str, capability: str) -> None:
    """An image for a model of text alone fails, and says who looks at images."""
    media = [Media(kind, b"", "")]
    with pytest.raises(UnsupportedMedia, match=rf"gen\('x'\): .* takes no {kind}s; .*gemini.* do(es)?$"):
        check_media("gen('x')", media, CHAT, TITLE)
    check_media("gen('x')", media, msgspec.structs.replace(CHAT, **{capability: True}), TITLE)


BIAS = Capabilities(continuation=TEXT, logit_bias=True, tokenizer=True)


@pytest.mark.parametrize(
    ("capabilities", "way"),
    [
        (Capabilities(continuation=TEXT, scoring=True), LOGPROBS),
        (msgspec.structs.replace(BIAS, scoring=True, schema=True), LOGPROBS),
        (BIAS, LOGIT_BIAS),
        (msgspec.structs.replace(BIAS, schema=True), LOGIT_BIAS),
        (msgspec.structs.replace(BIAS, tokenizer=False, schema=True), SCHEMA),
        (msgspec.structs.replace(BIAS, continuation=PREFILL, schema=True), SCHEMA),
        (Capabilities(schema=True), SCHEMA),
        (Capabilities(constraints=(CHOICE,)), SCHEMA),
    ],
)
def test_a_select_takes_the_best_way_there_is(capabilities: Capabilities, way: str) -> None:
    """Log probabilities before biased steps, which need token ids and a model that goes on with text, before a schema."""
    assert chosen(capabilities) == way


@pytest.mark.parametrize(
    "capabilities",
    [
        CHAT,
        msgspec.structs.replace(BIAS, tokenizer=False),
        Capabilities(constraints=(REGEX,)),
    ],
)
def test_a_select_that_can_be_had_in_no_way_fails(capabilities: Capabilities) -> None:
    """The error says what is missing and who has it."""
    with pytest.raises(Unsupported, match=r"^select\('x'\): .* can choose in no way: .* do$"):
        chosen(capabilities)


def test_a_method_that_needs_log_probabilities_is_not_replaced_in_silence() -> None:
    """What the prompt adds to each choice cannot be told from a schema."""
    with pytest.raises(Unsupported, match="choices_method='unconditional_likelihood_normalized' needs"):
        chosen(Capabilities(schema=True), "unconditional_likelihood_normalized")
    assert chosen(Capabilities(scoring=True), "unconditional_likelihood_normalized") == LOGPROBS


MODELS = {
    "openai": [openai_models.capabilities_of(api, "openai", "gpt-4o") for api in ("chat", "completions")],
    "anthropic": [anthropic.capabilities_of("claude-sonnet-4-5"), anthropic.capabilities_of("claude-9")],
    "gemini": [gemini.capabilities_of("gemini-2.5-flash"), gemini.capabilities_of("gemini-9")],
    **{
        server: [openai_models.capabilities_of(api, server, "m") for api in ("chat", "completions")]
        for server in ("vllm", "sglang", "sgl-actors", "llama.cpp")
    },
}


def can(name: str, model: Capabilities) -> bool:
    """Whether a model does what an entry of `CAN` is about."""
    others: dict[str, Any] = {
        "logit_bias": model.logit_bias,
        "json_schema": model.schema,
        "tools": model.tools,
        "logprobs": model.logprobs >= 0,
        "scoring": model.scoring,
        "image": model.images,
        "video": model.videos,
    }
    if name == "select":
        try:
            return bool(chosen(model))
        except Unsupported:
            return False
    return bool(others.get(name, name in model.sampling or name in model.constraints))


@pytest.mark.parametrize("name", CAN)
def test_who_can_is_what_the_vendors_declare(name: str) -> None:
    """An error sends nobody to a vendor of which no model can do it, and leaves none out."""
    able = {vendor for vendor, models in MODELS.items() if any(can(name, one) for one in models)}
    assert {*CAN[name].split(", ")} == able


def test_every_method_has_its_ways_and_every_name_its_list() -> None:
    """A method or an argument that is new has to be put into the tables."""
    assert {*WAYS} == {*METHODS}
    assert {*OTHERS} - {*CAN} == {"temperature", "top_p"}
