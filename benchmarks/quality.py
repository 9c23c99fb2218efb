"""What a way to compute costs in quality: the default against fp32 on the same weights, in one process.

    python -m benchmarks.quality [--model FILE] [--data DIR] [--compute auto] [--kv auto] [--positions 20000] [--items 200] [--check]

text       distributions at every position of the sample texts, 512 tokens in a sequence: share of positions with the same most likely token (of all; and
           where fp32's two most likely are more than 0.1 nat apart), mean KL divergence, perplexity over fp32's.
hellaswag  items with 5 solved examples before each: those right under fp32, those right under the candidate. Greatest log probability per token.
mmlu       the same with the subject's 5 solved examples; the likeliest letter.

fp32 is `compute = "fp32"`: the product of fp32 activations and dequantised weights. One JSON line per part, then the targets; with `--check` exit
code 1 if one is missed. Needs the sample data (docs/data.md).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.agreement import Agreement, compare
from benchmarks.accuracy.items import Encode, hellaswag, mmlu
from benchmarks.accuracy.passes import Subject
from benchmarks.harness import show, verdict
from sgl_actors.actors.cache.messages import Options as CacheOptions
from sgl_actors.actors.node.models import resolve
from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.actors.worker.device import count_cores, load_runner
from sgl_actors.actors.worker.messages import Options

LENGTH = 512
POOL = 6144
"""Tokens of a pool: the longest examples of an MMLU subject and a batch of items behind them."""
SHOTS = 5
TOP_1, TOP_1_DECIDED, DIVERGENCE, PERPLEXITY = 0.975, 0.995, 0.01, 1.005
FEWER = 0.02
"""Targets: of texts; and of the items, what may be right under fp32 beyond those right under the candidate."""

Targets = list[tuple[str, float, str, float]]


def texts(data: Path) -> Iterator[str]:
    """Each kind of sample text in one string: passages, cities, articles, chats, sums."""
    yield "\n\n".join(row["text"] for row in _lines(data / "rag/passages.jsonl"))
    yield "\n\n".join(row["document"] for row in _lines(data / "json_decode/city_documents_22.jsonl"))
    yield "\n\n".join(_lines(data / "judge/articles_20.jsonl"))
    threads = json.loads((data / "chat/oasst_sharegpt_format.json").read_text("utf-8"))
    yield "\n\n".join(turn["value"] for thread in threads for turn in thread["conversations"])
    sums = _lines(data / "gsm8k/test_200.jsonl")
    yield "\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in sums)


def cut(kinds: Sequence[Sequence[int]], positions: int, length: int = LENGTH) -> list[Sequence[int]]:
    """Sequences of at most `length` tokens from each kind in turn, `positions` tokens in all, or what there is."""
    ends = range(0, max(map(len, kinds), default=0), length)
    turns = [kind[begin : begin + length] for begin in ends for kind in kinds if len(kind) > begin]
    found: list[Sequence[int]] = []
    for turn in turns:
        if positions <= 0:
            break
        found.append(turn[:positions])
        positions -= len(turn)
    return found


def text_targets(found: Agreement) -> Targets:
    """Of the text part."""
    return [
        ("text: same most likely token", found.top_1, ">=", TOP_1),
        ("text: the same where fp32 is decided", found.top_1_decided, ">=", TOP_1_DECIDED),
        ("text: mean KL divergence, nats", found.mean_divergence, "<=", DIVERGENCE),
        ("text: perplexity over fp32's", found.perplexity_ratio, "<=", PERPLEXITY),
    ]


def paired(name: str, reference: Sequence[bool], candidate: Sequence[bool]) -> tuple[dict[str, Any], Targets]:
    """The line and the target of a set of items."""
    both = list(zip(reference, candidate, strict=True))
    line: dict[str, Any] = {
        "part": name,
        "items": len(both),
        "right_fp32": sum(reference),
        "right": sum(candidate),
        "lost": sum(one and not other for one, other in both),
        "won": sum(other and not one for one, other in both),
    }
    fewer = float(line["right_fp32"] - line["right"])
    return line, [(f"{name}: fewer right than fp32", fewer, "<=", FEWER * len(both))]


def measure(
    reference: Subject, candidate: Subject, encode: Encode, data: Path, *, positions: int, items: int
) -> Targets:
    """All parts; shows their lines."""
    targets: Targets = []
    if positions:
        found = compare(reference, candidate, cut([encode(text) for text in texts(data)], positions))
        show(
            part="text",
            compute=candidate.name,
            positions=found.positions,
            top_1=found.top_1,
            decided=found.decided,
            top_1_decided=found.top_1_decided,
            kl=found.mean_divergence,
            perplexity_fp32=found.perplexity,
            perplexity_ratio=found.perplexity_ratio,
        )
        targets += text_targets(found)
    if items:
        sets = {
            "hellaswag": (hellaswag, "hellaswag/shots_20.jsonl", "hellaswag/val_200.jsonl", SHOTS),
            "mmlu": (mmlu, "mmlu/dev_5shot.jsonl", "mmlu/test_200.jsonl", None),
        }
        for name, (score, solved, asked, most) in sets.items():
            shots, questions = _lines(data / solved)[:most], _lines(data / asked)[:items]
            right = [score(subject, encode, shots, questions) for subject in (reference, candidate)]
            line, missed = paired(name, *right)
            show(**line)
            targets += missed
    return targets


def subject(options: Mapping[str, Any]) -> Subject:
    """A model as a worker with these options would run it."""
    runner, info = load_runner(Options(**options), CacheOptions(pages=POOL))
    return Subject(info.compute, runner.model, runner.pool)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="file, folder or name")
    parser.add_argument("--data", default=os.environ.get("SGL_ACTORS_DATA"), help="folder of the sample data")
    parser.add_argument("--compute", default="auto", help="the candidate's; as in [model]")
    parser.add_argument("--kv", default="auto", help="the candidate's; as in [model]")
    parser.add_argument("--positions", type=int, default=20_000, help="of texts; 0 for none")
    parser.add_argument("--items", type=int, default=200, help="of HellaSwag, and of MMLU; 0 for none")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args(argv)
    data = Path(options.data or "")
    if not (data / "rag/passages.jsonl").is_file():
        parser.error("needs the sample data below --data or $SGL_ACTORS_DATA (docs/data.md)")
    path = str(resolve(options.model).path)
    encoder = vocabulary.load(path).tokenizer
    reference = subject({"path": path, "compute": "fp32"})
    candidate = subject({"path": path, "compute": options.compute, "kv": options.kv})
    torch.set_num_threads(count_cores())
    if reference.name == candidate.name:
        parser.error(f"the candidate computes as the reference does, in {reference.name}: nothing to compare")
    with torch.inference_mode():
        targets = measure(
            reference,
            candidate,
            lambda text: encoder.encode(text).ids,
            data,
            positions=options.positions,
            items=options.items,
        )
    verdict(targets, check=options.check)


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").strip().split("\n")]


if __name__ == "__main__":
    main()
