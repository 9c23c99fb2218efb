"""What is printed while a node comes up."""

from __future__ import annotations

import io
import json
import shlex

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.node.banner import (
    Progress,
    curl,
    describe_model,
    describe_ready,
    describe_start,
    format_progress,
    format_size,
    kv_sum,
)
from sgl_actors.actors.worker.messages import ModelInfo

INFO = ModelInfo(
    served_name="SmolLM2-135M-Instruct",
    path="/models/m.gguf",
    architecture="LlamaForCausalLM",
    context=8192,
    vocabulary=49152,
    eos_ids=(2,),
    pages=23301,
    page_size=1,
    bytes_per_token=46080,
    dtype="float32",
    device="cpu",
    threads=2,
    compute="int4",
    kernels="avx2",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_kv_budget_is_a_sum_that_adds_up() -> None:
    """Tokens times bytes per token is the size that is shown."""
    assert kv_sum(INFO) == "23,301 tokens × 46,080 B = 1.0 GiB (fp32)"
    paged = msgspec.structs.replace(INFO, page_size=16)
    assert kv_sum(paged) == "372,816 tokens (23,301 pages of 16) × 46,080 B = 16.0 GiB (fp32)"


def test_what_was_detected_is_shown() -> None:
    """Device, threads, type, context, weights and vocabulary each have their line."""
    assert describe_model(INFO) == [
        "model   SmolLM2-135M-Instruct (LlamaForCausalLM, 49,152 tokens in its vocabulary)",
        "weights /models/m.gguf",
        "device  cpu, 2 threads, int4, native kernels for AVX2",
        "context 8,192 tokens per sequence",
        "KV pool 23,301 tokens × 46,080 B = 1.0 GiB (fp32)",
    ]
    assert describe_start("node", "", "/l") == ["node    node (defaults)", "logs    /l"]


def test_a_node_without_a_gateway_shows_no_curl_line() -> None:
    """There is nothing to paste where nothing listens for HTTP."""
    assert len(describe_ready("ipc:///x/root.ipc", "m", 1.0)) == 1
    assert describe_ready("http://127.0.0.1:1", "m", 1.25)[0] == "ready   http://127.0.0.1:1 after 1.2 s"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_the_curl_line_survives_a_shell(name: str) -> None:
    """However a model is called, a shell takes the line apart into the words that were meant."""
    words = shlex.split(curl("http://127.0.0.1:30000/", name))
    assert words[:2] == ["curl", "http://127.0.0.1:30000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == name
    keyed = shlex.split(curl("http://127.0.0.1:30000/", name, keyed=True))
    assert [word for word in keyed if word not in words] == ["Authorization: Bearer $SGL_ACTORS_API_KEY"]


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50), st.floats(0, 1e6))
def test_progress_never_breaks_its_frame(done: int, total: int, seconds: float) -> None:
    """Any state, also of an empty file or more bytes than announced, is a bar of the same width."""
    text = format_progress(done, total, seconds)
    assert text.count("█") + text.count("·") == 30


def test_sizes_are_in_binary_units() -> None:
    """The unit changes at 1024."""
    assert [format_size(n) for n in (0, 1023, 1024, 94 << 20, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "94.0 MiB",
        "1024.0 TiB",
    ]


def test_a_bar_is_drawn_on_a_terminal_only() -> None:
    """Off a terminal nothing is written; on one the bar is taken away in the end."""
    off, on = io.StringIO(), Terminal()
    for stream in (off, on):
        progress = Progress(stream)
        progress.update(1, 2, 1.0)
        progress.clear()
        progress.clear()
    assert off.getvalue() == ""
    assert " 50% 1 B of 2 B, 1 B/s" in on.getvalue()
    assert on.getvalue().endswith("\r\x1b[K")
