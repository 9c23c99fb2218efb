"""A whole run of a node with marked prompts and keys, right requests and wrong ones: no mark is in any log, on any command line or in any listing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from tests.conftest import start_node

MARK = "MARKED-9f3e"
"""In every text that belongs to a user."""
KEYS = {"admin": "KEY-admin-51aa77", "alice": "KEY-alice-0c9d3b"}
WRONG_KEY = "KEY-wrong-77ab12"
CONFIG = """
[node]
log_level = "debug"
[actors."worker/0"]
class = "sgl_actors.actors.worker.fake:FakeWorker"
[tenants]
admin = "env:PRIVACY_ADMIN"
alice = "file:alice.key"
"""

CHAT = "/v1/chat/completions"
TEXT = f"{MARK} a prompt"
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"text": TEXT, "sampling_params": {"max_new_tokens": 3, "stop": [f"{MARK} stop"]}, "rid": "plain"}),
    ("/v1/completions", {"prompt": [TEXT, TEXT * 2], "max_tokens": 3, "n": 2, "stream": True, "echo": True, "logprobs": 1}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 10**7}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "regex": f"({MARK}"}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "stop_regex": f"({MARK}"}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "lark": f'start: "{MARK}" nothing'}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "ebnf": f'root ::= "{MARK}'}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "json_schema": {"$ref": f"#/{MARK}"}}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "json_schema": {"type": MARK}}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "choice": [MARK, MARK + "2"]}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": MARK}),
    ("/v1/completions", {"prompt": {"wrong": TEXT}}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 1, "cache_salt": f"{MARK}\x00"}),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 1, "model": MARK}),
    ("/v1/completions", {"prompt": "", "max_tokens": 1, "cache_salt": MARK}),
    (CHAT, {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 3}),
    (CHAT, {"messages": [{"role": MARK, "content": TEXT}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"http://10.0.0.1/{MARK}"}}]}]}),
    (CHAT, {"messages": [{"role": "tool", "content": TEXT, "tool_call_id": MARK}]}),
    (CHAT, {"messages": [{"role": "user", "content": TEXT}], "chat_template": f"{{{{ {MARK} }}}}"}),
    (CHAT, {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 2, "tools": [{"type": "function", "function": {"name": "f", "description": MARK, "parameters": {"type": MARK}}}]}),
    ("/tokenize", {"prompt": TEXT}),
    ("/tokenize", {"messages": [{"role": "assistant", "content": TEXT, "tool_calls": [{"id": "1", "type": "function", "function": {"name": MARK, "arguments": MARK}}]}]}),
    ("/cache/pin", {"text": TEXT, "ttl": 1.0, "cache_salt": MARK}),
    ("/abort_request", {"rid": MARK}),
]  # fmt: skip
RAW = [
    f'{{"prompt": "{MARK}", "max_tokens": 1'.encode(),
    f'{{"prompt": "{MARK}\\ud800", "max_tokens": 1}}'.encode(),
    f'["{MARK}"]'.encode(),
    MARK.encode() + b"\xff\xfe",
    b'{"prompt": ' + b"[" * 3000 + MARK.encode(),
]
HTTP = [
    f"GET /{MARK} HTTP/9.9\r\n\r\n".encode(),
    f"POST /generate HTTP/1.1\r\nAuthorization: Bearer {KEYS['alice']}\r\nContent-Length: x{MARK}\r\n\r\n".encode(),
    f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRONG_KEY}\r\nContent-Length: 5\r\n\r\n{MARK}".encode(),
    b"GET /" + MARK.encode() * 5000 + b" HTTP/1.1\r\n\r\n",
]


def ask_everything(url: str) -> None:
    """Right and wrong requests of a tenant, of the admin, of nobody and of somebody with a wrong key."""
    for key in (*KEYS.values(), WRONG_KEY, ""):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with httpx2.Client(base_url=url, headers=headers, timeout=60) as client:
            for path, body in BODIES if key == KEYS["alice"] else BODIES[:3]:
                assert client.post(path, json=body).status_code < 500
            for raw in RAW:
                assert client.post("/v1/completions", content=raw).status_code < 500
            for path in (
                f"/v1/models/{MARK}",
                f"/cache/export?cache_salt={MARK}",
                f"/{MARK}",
                "/server_info",
                "/metrics",
            ):
                assert client.get(path).status_code < 500
            client.delete(f"/cache/pin/{MARK}?tenant={MARK}")
    place = urlsplit(url)
    for raw in HTTP:
        with socket.create_connection((place.hostname, place.port), timeout=10) as peer:
            peer.sendall(raw)
            peer.recv(1 << 16)


def test_no_prompt_and_no_key_is_written_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the logs at debug level, nor on standard output and error, nor in command lines, the node's record, metrics or `check-config`."""
    (tmp_path / "alice.key").write_text(KEYS["alice"] + "\n")
    (tmp_path / "alice.key").chmod(0o600)
    config = tmp_path / "node.toml"
    config.write_text(CONFIG)
    monkeypatch.setenv("PRIVACY_ADMIN", KEYS["admin"])
    process, record = start_node(tmp_path, config=config)
    try:
        ask_everything(record.url)
        root = psutil.Process(process.pid)
        lines = [json.dumps(one.cmdline()) for one in (root, *root.children(recursive=True))]
        metrics = httpx2.get(f"{record.url}/metrics", headers={"x-api-key": KEYS["admin"]}).text
    finally:
        process.terminate()
        process.wait(30)
    command = [
        sys.executable,
        "-m",
        "sgl_actors.cli",
        "check-config",
        str(config),
        "--show-origin",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    written = {
        "command lines": "\n".join(lines),
        "metrics": metrics,
        "check-config": shown.stdout + shown.stderr,
    }
    files = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix in (".jsonl", ".json", ".txt", ".1")
    ]
    written |= {path.name: path.read_text("utf-8", "replace") for path in files}
    assert "gateway.jsonl" in written
    assert '"status":401' in written["gateway.jsonl"]
    found = [
        f"{name}: {line[:2000]}"
        for name, text in written.items()
        for line in text.splitlines()
        if any(secret in line for secret in (MARK, *KEYS.values(), WRONG_KEY))
    ]
    assert found == []
