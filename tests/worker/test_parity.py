"""Our forward pass against transformers', on the same weights in fp32."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgl_actors.actors.worker.checkpoint import open_checkpoint
from sgl_actors.actors.worker.messages import Logprobs
from sgl_actors.actors.worker.model.causal_lm import CausalLM
from sgl_actors.actors.worker.model.language_model import LanguageModel
from tests.worker.harness import Driver, Generation, make_runner, parity_prompts, read_tokenizer

pytestmark = pytest.mark.model
THREADS = 2

NEAR_TIE = 1e-3
"""Two outputs are the same if they first differ where the oracle's two best logits are closer than this."""


@pytest.fixture(scope="module")
def prompts(gguf_path: Path) -> list[list[int]]:
    return parity_prompts(read_tokenizer(gguf_path))


def oracle_logits(oracle: Any, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocabulary]"""
    with torch.inference_mode():
        logits: torch.Tensor = oracle(torch.tensor([tokens])).logits[0]
    return logits


def assert_same(prompt: list[int], generation: Generation, logits: torch.Tensor) -> str | None:
    """Fail unless the tokens are the oracle's greedy ones; return a note if they part at a near tie.

    The oracle's greedy output agrees with ours up to a token exactly if its argmax after each of our prefixes does,
    so that its `logits` of one pass over prompt and output decide it.
    """
    for index, (row, token) in enumerate(zip(logits[len(prompt) - 1 :], generation.tokens, strict=True)):
        best = row.topk(2)
        if int(best.indices[0]) != token:
            gap = float(best.values[0] - best.values[1])
            assert gap < NEAR_TIE, (
                f"token {index} is {token}, the oracle's {int(best.indices[0])} leads by {gap}"
            )
            return f"prompt of {len(prompt)} tokens parts at output token {index}, gap {gap:.2e}"
    return None


def check_parity(model: LanguageModel, oracle: Any, prompts: list[list[int]], count: int) -> list[str]:
    room = sum(len(prompt) + count for prompt in prompts)
    wanted = Logprobs(prompt_start=0)
    together = Driver(make_runner(model, tokens=room), shuffle=1).generate(
        prompts, count, logprobs=wanted, chunk=256
    )
    notes = []
    for prompt, joint in zip(prompts, together, strict=True):
        (alone,) = Driver(make_runner(model, tokens=len(prompt) + count)).generate(
            [prompt], count, logprobs=wanted
        )
        theirs = oracle_logits(oracle, prompt + alone.tokens[:-1])
        scores = theirs[: len(prompt) - 1].log_softmax(-1)
        expected = scores[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
        for kind, generation in (("alone", alone), ("together", joint)):
            if generation.tokens != alone.tokens:
                theirs = oracle_logits(oracle, prompt + generation.tokens[:-1])
            note = assert_same(prompt, generation, theirs)
            notes += [f"{kind}: {note}"] if note else []
            assert [entry.token_id for entry in generation.prompt_logprobs] == prompt
            assert generation.prompt_logprobs[0].logprob is None
            ours = torch.tensor([entry.logprob for entry in generation.prompt_logprobs[1:]])
            assert torch.allclose(ours, expected, atol=1e-3, rtol=0)
    return notes


def test_greedy_output_and_prompt_scores_agree_with_transformers(
    smollm2: CausalLM, oracle: Any, prompts: list[list[int]], record_property: Any
) -> None:
    """Plain text and chats from 5 to over 200 tokens give transformers' 8 greedy tokens, alone and all at once."""
    short = [prompt for prompt in prompts if len(prompt) <= 300]
    chosen = [*short[:3], max(short, key=len)]
    assert min(map(len, chosen)) == 5
    assert max(map(len, chosen)) > 200
    record_property("near ties", check_parity(smollm2, oracle, chosen, 8))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_prompts_agree_with_transformers_for_64_tokens(
    smollm2: CausalLM, oracle: Any, prompts: list[list[int]], record_property: Any
) -> None:
    """Twenty prompts from 5 to 800 tokens give transformers' 64 greedy tokens, alone and all at once."""
    assert len(prompts) == 20
    assert min(map(len, prompts)) == 5
    assert max(map(len, prompts)) == 800
    notes = check_parity(smollm2, oracle, prompts, 64)
    logging.getLogger(__name__).info("near ties: %s", notes or "none")
    record_property("near ties", notes)


@pytest.mark.slow
def test_dequantised_weights_agree_with_the_gguf_library(gguf_path: Path) -> None:
    """One tensor of each type comes out as gguf's own reader and dequantiser give it; q and k are put back in order."""
    from gguf import GGUFReader, dequantize

    from sgl_actors.actors.worker.checkpoint.gguf_file import GgufFile

    file = GgufFile(gguf_path)
    entries = {tensor.name: tensor for tensor in GGUFReader(gguf_path).tensors}
    assert set(entries) == set(file.tensors)
    for name in ("token_embd.weight", "blk.3.ffn_down.weight", "blk.29.attn_k.weight", "output_norm.weight"):
        expected = dequantize(entries[name].data, entries[name].tensor_type)
        assert np.array_equal(file.read(file.tensors[name]), expected)


@pytest.mark.slow
def test_loaded_weights_agree_with_transformers_own_gguf_loading(gguf_path: Path, oracle: Any) -> None:
    """Every tensor equals the one that transformers makes of the file, and the oracle has the shape that it reads there."""
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(gguf_path.parent), gguf_file=gguf_path.name, dtype=torch.float32
    )
    assert type(model) is type(oracle)
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
    ):
        assert getattr(model.config, key) == getattr(oracle.config, key), key
    theirs = model.state_dict()
    source = open_checkpoint(gguf_path)
    for name in source.sizes:
        assert torch.equal(source.read(name), theirs[name]), name
