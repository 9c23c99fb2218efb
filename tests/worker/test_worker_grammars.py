"""Constrained sequences in a runner, on a small random model whose tokens are bytes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sgl_actors.actors.worker.batch import HeldSequence
from sgl_actors.actors.worker.grammars import Grammars, Next
from sgl_actors.actors.worker.messages import Logprobs, Sampling, Work
from sgl_actors.actors.worker.runner import ModelRunner
from sgl_actors.actors.worker.sample_row import SampleRow
from sgl_actors.actors.worker.sampler import sample
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.constraints.engines import Engines
from tests.lang.byte_vocabulary import EOS, SIZE, byte_engines, ids_of, text_of
from tests.lang.constraints.vocabularies import byte_level, id_of
from tests.worker.harness import Driver, Generation, make_runner, tiny_config, tiny_model

MODEL = tiny_model(tiny_config(vocabulary=SIZE, eos_ids=(EOS,)))
ENGINES = byte_engines()
DATE = Constraint("regex", "[0-9]{4}-[0-9]{2}-[0-9]{2}")
WORDS = Constraint("regex", "[a-z ]{5,9}")
FREE = [
    Sampling(seed=4, temperature=0.0),
    Sampling(seed=5, temperature=1.0, top_k=40, min_tokens=3, end_ids=(EOS,)),
]


def constrained(constraint: Constraint, **options: Any) -> Sampling:
    fields: dict[str, Any] = {"seed": 1, "temperature": 0.0, "end_ids": (EOS,), **options}
    return Sampling(**fields, constraint=constraint)


def runner(*, known: bool = True) -> ModelRunner:
    made = make_runner(MODEL)
    if known:
        made.grammars.set_up(ENGINES)
        prepare(made.grammars, DATE, WORDS)
    return made


def prepare(grammars: Grammars, *constraints: Constraint) -> None:
    for constraint in constraints:
        grammars.prepare(constraint, ENGINES.compile(constraint).automaton)


def generate(samplings: list[Sampling], count: int = 14, **options: Any) -> list[Generation]:
    prompts = [[number + 1, 9, 60, number] for number in range(len(samplings))]
    return Driver(runner()).generate(prompts, count, sampling=samplings, **options)


def output(generation: Generation) -> str:
    """Its text to the end token, which has to be there."""
    assert generation.error == ""
    return text_of(generation.tokens[: generation.tokens.index(EOS)])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 30.0])
def test_output_satisfies_its_constraint(temperature: float) -> None:
    """Every output matches whatever the temperature, in one batch of several constraints; after the end nothing but end tokens comes."""
    samplings = [
        constrained(constraint, temperature=temperature, seed=seed)
        for seed in range(4)
        for constraint in (DATE, WORDS)
    ]
    for sampling, generation in zip(samplings, generate(samplings), strict=True):
        assert sampling.constraint is not None
        text = output(generation)
        assert re.fullmatch(sampling.constraint.source, text)
        assert set(generation.tokens[len(text) :]) == {EOS}


def test_free_sequences_beside_it_are_as_alone() -> None:
    """The others of a batch get the very tokens that they get by themselves."""
    alone = generate(FREE)
    mixed = generate([*FREE, constrained(DATE), constrained(WORDS, temperature=1.0)])
    assert [one.tokens for one in mixed[:2]] == [one.tokens for one in alone]


def test_other_sampling_options_choose_among_what_is_allowed() -> None:
    """top_k, top_p, min_p, penalties and a bias hold within the constraint and never lead out of it."""
    digits = ids_of("0123456789")
    seven = digits[7]
    narrow = [
        constrained(DATE, temperature=1.0, top_k=1),
        constrained(DATE, temperature=1.0, top_p=1e-6),
        constrained(DATE, temperature=1.0, min_p=1.0),
    ]
    greedy = generate([constrained(DATE)])[0].tokens
    for sampling in narrow:
        assert Driver(runner()).generate([[1, 9, 60, 0]], 14, sampling=sampling)[0].tokens == greedy
    biased = constrained(DATE, logit_bias=((seven, 100.0), (ids_of("x")[0], 100.0)))
    assert output(generate([biased])[0]) == "7777-77-77"
    penalised = constrained(DATE, logit_bias=((seven, 50.0),), presence_penalty=2.0, frequency_penalty=2.0)
    assert re.fullmatch(DATE.source, output(generate([penalised])[0]))


def test_min_tokens_gives_way_where_nothing_else_is_left() -> None:
    """End tokens wait for min_tokens as long as the grammar can go on, and come when it cannot."""
    least = constrained(WORDS, min_tokens=8, temperature=1.0, logit_bias=((EOS, 100.0),))
    assert len(output(generate([least])[0])) == 8
    longer = constrained(DATE, min_tokens=12)
    assert len(output(generate([longer])[0])) == 10


def test_scores_are_those_of_the_free_model() -> None:
    """Log probabilities do not show the constraint: what it leaves out keeps its place among the alternatives."""
    wanted = Logprobs(output=True, top=3)
    (one,) = generate([constrained(DATE)], 1, logprobs=wanted)
    (free,) = generate([Sampling(seed=1, temperature=0.0)], 1, logprobs=wanted)
    assert one.logprobs[0].token_id == one.tokens[0] != free.tokens[0]
    assert one.logprobs[0].top == free.logprobs[0].top
    assert one.logprobs[0].logprob is not None
    assert one.logprobs[0].logprob < free.logprobs[0].top[0][1]


@pytest.mark.parametrize("done", [1, 4, 7, 10])
def test_a_sequence_that_comes_back_goes_on(done: int) -> None:
    """With the output it has, a sequence goes on as if it had never been away; the constraint is not begun anew."""
    sampling = constrained(DATE, temperature=1.0)
    prompt = [1, 9, 60, 0]
    (whole,) = Driver(runner()).generate([prompt], 11, sampling=sampling)
    driver = Driver(runner())
    new = driver.new(prompt + whole.tokens[:done], 20, sampling, prompt_length=len(prompt))
    result = driver.step([Work(new.seq, len(prompt) + done)], [new])[new.seq]
    tokens = [*whole.tokens[:done], result.token_id, *result.forced]
    while tokens[-1] != EOS:
        result = driver.step([Work(new.seq)])[new.seq]
        tokens += [result.token_id, *result.forced]
    assert tokens == whole.tokens


def test_chunked_prompts_and_pages() -> None:
    """A prompt in chunks beside decoding ones makes no difference."""
    samplings = [constrained(DATE), constrained(WORDS), FREE[0]]
    assert [one.tokens for one in generate(samplings, chunk=1)] == [one.tokens for one in generate(samplings)]


def test_a_grammar_that_cannot_go_on_fails_its_row_alone() -> None:
    """An output that breaks the constraint, and a constraint that is not compiled, are errors of those rows."""
    driver = Driver(runner())
    broken = driver.new([1, 2, *ids_of("20x")], 20, constrained(DATE), prompt_length=2)
    wrong = driver.new([1, 2, 3], 20, constrained(Constraint("regex", "ab")))
    good = driver.new([1, 2, 3, 4], 20, constrained(DATE))
    free = driver.new([5, 9], 20, FREE[0])
    news = [broken, wrong, good, free]
    results = driver.step([Work(new.seq, len(new.token_ids)) for new in news], news)
    assert "regex: token" in results[broken.seq].error
    assert "not compiled" in results[wrong.seq].error
    assert [results[one.seq].code for one in (broken, wrong)] == ["invalid_request", "not_ready"]
    assert results[good.seq].token_id in ids_of("0123456789")
    assert results[free.seq].error == ""
    assert sorted(driver.runner.batch.sequences) == [good.seq, free.seq]
    assert driver.step([Work(good.seq), Work(free.seq)])[good.seq].error == ""


def test_without_the_vocabulary_constrained_rows_wait_for_no_one() -> None:
    """They end with an error that can be retried; free ones run."""
    driver = Driver(runner(known=False))
    one, free = driver.new([1, 2], 9, constrained(DATE)), driver.new([5, 9], 9, FREE[0])
    results = driver.step([Work(one.seq, 2), Work(free.seq, 2)], [one, free])
    assert results[one.seq].code == "not_ready"
    assert results[free.seq].token_id >= 0


def test_the_constraint_that_was_used_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bounded number is kept; using one counts, and a sequence whose grammar has begun does not need it any more."""
    monkeypatch.setattr("sgl_actors.actors.worker.grammars.COMPILED", 2)
    grammars = Grammars(SIZE)
    grammars.set_up(ENGINES)
    prepare(grammars, DATE, WORDS)
    held = HeldSequence(1, [7], 1, 0, constrained(DATE), Logprobs())
    assert isinstance(grammars.fill([held]).result()[1], Next)
    prepare(grammars, Constraint("regex", "c"))
    assert [grammars.knows(one) for one in (DATE, WORDS)] == [True, False]
    prepare(grammars, Constraint("regex", "d"))
    assert not grammars.knows(DATE)
    assert isinstance(grammars.fill([held]).result()[1], Next)


def test_a_sequence_whose_prompt_is_being_read_keeps_its_constraint(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others are prepared between its beginning and its first sample."""
    monkeypatch.setattr("sgl_actors.actors.worker.grammars.COMPILED", 2)
    driver = Driver(runner())
    new = driver.new([1, 2, 3, 4], 9, constrained(DATE))
    driver.step([Work(new.seq, 2, sample=False)], [new])
    prepare(driver.runner.grammars, Constraint("regex", "c"), Constraint("regex", "d"))
    assert driver.step([Work(new.seq, 2)])[new.seq].error == ""


def test_forbidden_tokens_are_never_chosen() -> None:
    """A row's forbidden tokens have no weight, greedy or drawn; a row of which all are forbidden has no token."""
    logits = torch.linspace(0, 5, 16).repeat(3, 1)
    forbidden = np.ones(16, dtype=np.bool_)
    none = forbidden.copy()
    forbidden[[2, 3]] = False
    greedy, drawn = Sampling(seed=0, temperature=0.0), Sampling(seed=0, temperature=5.0)
    rows = [
        SampleRow(greedy, 0, forbidden=forbidden),
        SampleRow(greedy, 0),
        SampleRow(drawn, 0, forbidden=none),
    ]
    assert sample(logits, rows) == [3, 15, -1]
    seen = {sample(logits[:1], [SampleRow(drawn, at, forbidden=forbidden)])[0] for at in range(40)}
    assert seen == {2, 3}


def _numbers() -> Tokenizer:
    """Bytes, and 12, 20, 24 and 2024, of which 12 is joined last."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "20", "24", "2024", "12"]
    merges = [("2", "0"), ("2", "4"), ("20", "24"), ("1", "2")]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def _runner_over(tokenizer: Tokenizer, source: str, kind: str) -> tuple[Engines, ModelRunner, Constraint]:
    """A runner over a vocabulary, with one constraint."""
    end, size = id_of(tokenizer, "<end>"), tokenizer.get_vocab_size()
    engines = Engines(tokenizer.to_str(), (end,), size)
    made = make_runner(tiny_model(tiny_config(vocabulary=size, eos_ids=(end,))))
    made.grammars.set_up(engines)
    constraint = Constraint(kind, source)
    made.grammars.prepare(constraint, engines.compile(constraint).automaton)
    return engines, made, constraint


def _write(engines: Engines, made: ModelRunner, output: list[int], sampling: Sampling) -> list[int]:
    """What follows `output`, to the end token."""
    driver = Driver(made)
    new = driver.new([3, *output], 40, sampling, prompt_length=1)
    start, count, tokens = [new], 1 + len(output), list[int]()
    while tokens[-1:] != [*engines.tokens.eos_ids]:
        result = driver.step([Work(new.seq, count)], start)[new.seq]
        assert result.error == ""
        tokens += [result.token_id, *result.forced]
        start, count = [], 1 + len(result.forced)
    made.reset(driver.runner.batch.epoch + 1)
    return tokens


def test_an_output_goes_on_alike_from_every_token() -> None:
    """No token stands for a choice that whoever has only the tokens up to it cannot see: one that the tokenizer would write as several is chosen anew."""
    engines, made, constraint = _runner_over(_numbers(), "1?(2024|[3-9])x", "regex")
    tokens = engines.tokens
    joint = next(token for token in tokens.sorted_ids.tolist() if tokens.raw[token] == b"12")
    assert tokens.raw[tokens.encode(b"12024x")[0]] == b"1"
    for seed in range(40):
        sampling = Sampling(
            seed,
            temperature=1.0,
            end_ids=tokens.eos_ids,
            logit_bias=((joint, 2.0 + 7 * (seed % 2)),),
            constraint=constraint,
        )
        whole = _write(engines, made, [], sampling)
        for done in range(len(whole)):
            assert whole[:done] + _write(engines, made, whole[:done], sampling) == whole


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('start: <turn> "abc"', b"abc"),
        ('start: "abc" <turn> "Hello"', b"abcHello"),
        ("start: a\na[max_tokens=3]: /[a-c]+/", None),
        ('start: a "."\na[stop="x"]: /[abx]+/', None),
    ],
)
def test_marks_and_limits_in_a_grammar(source: str, text: bytes | None) -> None:
    """Special tokens, which have no text, and lexemes whose matcher takes no token back."""
    engines, made, constraint = _runner_over(byte_level(), source, "lark")
    bias = ((id_of(byte_level(), "x"), 5.0),)
    for jump in (True, False):
        sampling = Sampling(
            1, 1.0, end_ids=engines.tokens.eos_ids, logit_bias=bias, constraint=constraint, jump_forward=jump
        )
        written = b"".join(engines.tokens.raw[token] for token in _write(engines, made, [], sampling))
        assert text is None or written == text
