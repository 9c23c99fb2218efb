"""The example packages: a node that finds their classes by entry point, as if they were installed, and each by itself."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from sgl_actors.actors.node.record import NodeRecord
from tests.conftest import start_node, stop_node

FOLDER = Path(__file__).parents[2] / "examples" / "plugins"
PACKAGES = ("markov_worker", "shortest_first")
TEXT = (
    "The bees carry nectar to the hive. The bees carry pollen to the hive. The bees carry nectar to the keeper. "
    * 3
)
CONFIG = """
[actors."worker/0"]
class = "markov"
[actors."worker/0".options]
text = "{text}"
order = 2
[actors.scheduler]
class = "shortest_first"
[actors.scheduler.options]
age = 0.5
"""


def install(package: Path, target: Path) -> None:
    """What pip leaves of a package: its metadata beside its modules, which stay where they are."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    metadata = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {path}" for name, path in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRecord]:
    """A node with both, its model's weights not loaded."""
    folder = tmp_path_factory.mktemp("plugins")
    for name in PACKAGES:
        install(FOLDER / name, folder)
    text = folder / "bees.txt"
    text.write_text(TEXT)
    config = folder / "node.toml"
    config.write_text(CONFIG.format(text=text))
    paths = [str(folder), *(str(FOLDER / name) for name in PACKAGES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
        process, record = start_node(folder, config=config)
        yield record
        assert stop_node(process) == 0


def complete(node: NodeRecord, **body: Any) -> dict[str, Any]:
    """The first choice of a completion."""
    body = {"model": "x", "prompt": "The bees", "max_tokens": 24, "temperature": 0} | body
    body["model"] = httpx2.get(f"{node.url}/v1/models").json()["data"][0]["id"]
    answer = httpx2.post(f"{node.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_a_third_partys_worker_serves_text(node: NodeRecord) -> None:
    """Greedy it writes on with what it has read, a seed repeats, stop strings and log probabilities work, a constraint is the asker's error."""
    assert complete(node)["text"].startswith(" carry nectar to the hive. The bees carry nectar")
    assert complete(node, stop=["hive"])["text"] == " carry nectar to the "
    drawn = [complete(node, temperature=1.0, seed=seed)["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    scores = complete(node, max_tokens=2, logprobs=2, echo=True)["logprobs"]["token_logprobs"]
    assert scores[0] is None
    assert max(scores[1:]) <= 0 > min(scores[1:])
    body = {"model": "default", "prompt": "x", "max_tokens": 4, "regex": "a+"}
    body["model"] = httpx2.get(f"{node.url}/v1/models").json()["data"][0]["id"]
    answer = httpx2.post(f"{node.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "takes no constraints" in answer.json()["error"]["message"]


def test_third_parties_are_swapped_out_and_in_while_requests_run(node: NodeRecord) -> None:
    """By the CLI, by name, in place or by a new incarnation: the requests that run end as if nothing had been."""
    expected = complete(node, max_tokens=400)["text"]
    running = subprocess.Popen(
        [sys.executable, "-c", LOAD, node.url], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    folder = Path(node.endpoint.removeprefix("ipc://")).parent
    for name in ("sgl_actors.actors.scheduler.actor:SchedulerActor", "shortest_first"):
        assert swap(folder, "scheduler", name)["in_place"] is True
    assert swap(folder, "worker/0", "markov")["in_place"] is True
    assert swap(folder, "worker/0", "markov", "--restart")["in_place"] is False
    out, _ = running.communicate("\n", timeout=60)
    texts = json.loads(out)
    assert texts
    assert set(texts) == {expected}


LOAD = """
import json, sys, threading, httpx2
url, texts, ended = sys.argv[1], [], threading.Event()
model = httpx2.get(url + "/v1/models").json()["data"][0]["id"]
body = {"model": model, "prompt": "The bees", "max_tokens": 400, "temperature": 0}
def work():
    while not ended.is_set():
        answer = httpx2.post(url + "/v1/completions", json=body, timeout=60)
        texts.append(answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
print("begun", flush=True)
sys.stdin.readline()
ended.set()
for thread in threads: thread.join()
print(json.dumps(texts))
"""
"""Four clients that ask one thing after the other, until a line comes."""


def swap(folder: Path, actor: str, name: str, *flags: str) -> dict[str, Any]:
    """`sgl-actors swap ACTOR --class NAME`, in this process."""
    from typer.testing import CliRunner

    from sgl_actors.actors.node.record import read_record
    from sgl_actors.cli import node as cli_node
    from sgl_actors.cli.app import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_node, "find", lambda _node, _config: read_record(folder))
        result = CliRunner().invoke(app, ["swap", actor, "--class", name, "--json", *flags])
    assert result.exit_code == 0, result
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_shortest_job_goes_first_until_a_longer_one_has_waited() -> None:
    """Cached tokens are no work, expected output is, priorities come first, and age decides in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER / "shortest_first"))
        module = importlib.import_module("shortest_first")

    def job(arrival: int, prompt: int, **given: Any) -> Any:
        values = {"hint": 0, "since": 0, "priority": 0, "max_tokens": 10} | given
        spec = SimpleNamespace(prompt=[0] * prompt, max_tokens=values.pop("max_tokens"))
        return SimpleNamespace(
            arrival=arrival, length=prompt, uncached=prompt - values["hint"], spec=spec, **values
        )

    expected = SimpleNamespace(expect=lambda generated: 50)
    policy = module.ShortestJob(module.Options(age=0.1, output=2.0), expected)

    def order(*jobs: Any, processed: int = 0) -> list[int]:
        return [one.arrival for one in policy.order(jobs, processed)]

    assert order(job(1, 300), job(2, 20), job(3, 300, hint=299)) == [3, 2, 1]
    assert order(job(1, 20, max_tokens=1000), job(2, 100, max_tokens=1), job(3, 20)) == [3, 2, 1]
    assert order(job(1, 20), job(2, 300, priority=1)) == [2, 1]
    assert order(job(1, 300, since=0), job(2, 20, since=5000), processed=5000) == [1, 2]
    for wrong in ({"age": 2.0}, {"output": -1.0}):
        with pytest.raises(ValueError, match="expected age"):
            module.Options(**wrong)


def test_the_worker_imports_no_torch() -> None:
    """What it is made of are the protocol's messages alone."""
    script = "import sys, markov_worker; assert 'torch' not in sys.modules and 'sgl_actors.actors.worker.actor' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=FOLDER / "markov_worker", timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_pip_installs_them_with_their_entry_point(name: str, tmp_path: Path) -> None:
    """As a user would, but for what they depend on."""
    source = tmp_path / "source"
    source.mkdir()
    for file in (FOLDER / name).glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *flags,
        "--target",
        str(tmp_path / "target"),
        str(source),
    ]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    found = list((tmp_path / "target").glob("*.dist-info/entry_points.txt"))
    assert len(found) == 1
    assert "[sgl_actors.actors]" in found[0].read_text()
