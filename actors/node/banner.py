"""What `sgl-actors start` prints while a node comes up: what was found, the sums behind it, and a line to paste.

Functions return text; `Progress` alone writes, and only to a terminal.
"""

from __future__ import annotations

import json
import shlex
from typing import TextIO

from sgl_actors.actors.worker.messages import ModelInfo

SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
BAR_WIDTH = 30
FIRST_UNIT = 1024
LABEL_WIDTH = 8
KEY_HEADER = '-H "Authorization: Bearer $SGL_ACTORS_API_KEY" '


def format_size(count: float) -> str:
    """Bytes for people: ``88.2 MiB``, ``1.0 GiB``."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if round(count, 1) < FIRST_UNIT or unit == "TiB":
            break
        count /= FIRST_UNIT
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def describe_start(name: str, file: str, log_dir: str) -> list[str]:
    """The first lines: which node, from which file, where its logs go."""
    return [_line("node", f"{name} ({file or 'defaults'})"), _line("logs", log_dir)]


KERNELS = {
    "vnni": "native kernels for AVX-512 VNNI",
    "avx2": "native kernels for AVX2",
    "portable": "native kernels for any processor",
    "torch": "torch's kernels",
    "triton": "Triton's kernels",
}
"""`ModelInfo.kernels` in words."""


def describe_model(info: ModelInfo) -> list[str]:
    """What is loaded, on what, and the KV budget as a sum."""
    dtype = SHORT_DTYPES.get(info.compute, info.compute)
    kernels = KERNELS.get(info.kernels, info.kernels)
    threads = f", {counted(info.threads, 'thread')}" if info.device == "cpu" else ""
    return [
        _line(
            "model", f"{info.served_name} ({info.architecture}, {info.vocabulary:,} tokens in its vocabulary)"
        ),
        _line("weights", info.path),
        _line("device", ", ".join(filter(None, (f"{info.device}{threads}", dtype, kernels)))),
        _line("context", f"{info.context:,} tokens per sequence"),
        _line("KV pool", kv_sum(info)),
    ]


def kv_sum(info: ModelInfo) -> str:
    """``23,301 tokens × 46,080 B = 1.0 GiB (fp32)``, with the pages where a page holds more than one token."""
    tokens = info.pages * info.page_size
    pages = f" ({info.pages:,} pages of {info.page_size})" if info.page_size > 1 else ""
    size = format_size(tokens * info.bytes_per_token)
    dtype = SHORT_DTYPES.get(info.dtype, info.dtype)
    return f"{tokens:,} tokens{pages} × {info.bytes_per_token:,} B = {size} ({dtype})"


def describe_ready(url: str, served_name: str, seconds: float, *, keyed: bool = False) -> list[str]:
    """The last lines: the URL and a request to paste into a shell, if there is a gateway to take it."""
    ready = _line("ready", f"{url} after {seconds:.1f} s")
    return [ready, "", curl(url, served_name, keyed=keyed), ""] if url.startswith("http") else [ready]


def curl(url: str, served_name: str, *, keyed: bool = False) -> str:
    """A chat completion as a curl command; any name is quoted so that a shell passes it on unchanged.

    With `keyed` the key is taken from the shell's variable.
    """
    body = json.dumps(
        {
            "model": served_name,
            "messages": [{"role": "user", "content": "Name three colours."}],
            "max_tokens": 32,
            "temperature": 0,
        }
    )
    return (
        f"curl {shlex.quote(url.rstrip('/') + '/v1/chat/completions')} "
        f"{KEY_HEADER if keyed else ''}-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def format_progress(done: int, total: int, seconds: float) -> str:
    """One state of the bar: share, bytes read of all, bytes per second."""
    share = min(1.0, done / total) if total > 0 else 1.0
    full = int(share * BAR_WIDTH)
    rate = f", {format_size(done / seconds)}/s" if seconds > 0 else ""
    bar = "█" * full + "·" * (BAR_WIDTH - full)
    return f"{'weights':<{LABEL_WIDTH}}{bar} {share:4.0%} {format_size(done)} of {format_size(total)}{rate}"


class Progress:
    """The bar while weights are read. Off a terminal it writes nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._on = stream.isatty()
        self._drawn = False

    def update(self, done: int, total: int, seconds: float) -> None:
        """Draw over the last state; `seconds` since the start of loading."""
        if self._on:
            self._stream.write(f"\r\x1b[K{format_progress(done, total, seconds)}")
            self._stream.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the bar away, so that lines can follow."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False


def counted(count: int, noun: str) -> str:
    """``1 page``, ``23,301 pages``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _line(label: str, text: str) -> str:
    return f"{label:<{LABEL_WIDTH}}{text}"
