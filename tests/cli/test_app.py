"""The command as its user meets it: exit codes, messages, what is imported for what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = (
    "start", "run", "bench", "chat", "ps", "logs", "restart", "stop", "check-config", "models", "version", "scheduler", "cache",
    "cache ls", "cache pin", "cache unpin", "cache flush", "cache export",
)  # fmt: skip
HEAVY = (
    "torch",
    "transformers",
    "starlette",
    "uvicorn",
    "zmq",
    "numpy",
    "rich",
    "asyncio",
    "structlog",
    "msgspec",
)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment in which no node runs, and a folder without a node.toml."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SGL_ACTORS_")}
    return environ | {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HF_HUB_CACHE": str(tmp_path / "hub")}


def command(
    *arguments: str, env: dict[str, str], cwd: Path, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sgl_actors.cli", *arguments],
        env=env,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_imports_nothing_heavy(home: dict[str, str], tmp_path: Path) -> None:
    """`--help` of the command and of each verb answers from typer alone; that is what keeps it under 0.3 s."""
    probe = f"""
import contextlib, io, sys
from sgl_actors.cli.app import app
for words in [["--help"]] + [[*verb.split(), "--help"] for verb in {VERBS!r}]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            app(words)
        except SystemExit as end:
            assert end.code == 0, words
    assert "Usage:" in out.getvalue(), words
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], env=home, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "verb", ["ps", "stop", "logs", "restart cache", "chat --node x", "cache ls", "cache pin x", "scheduler"]
)
def test_without_a_node_a_verb_says_so(verb: str, home: dict[str, str], tmp_path: Path) -> None:
    """One line, no traceback, exit code 1."""
    done = command(*verb.split(), env=home, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("sgl-actors: no node ")
    assert done.stderr.count("\n") == 1


def test_a_wrong_file_is_reported_by_line_and_exits_2(home: dict[str, str], tmp_path: Path) -> None:
    """`check-config` and `start` say the same about it."""
    (tmp_path / "node.toml").write_text("[scheduler]\nmax_bach = 1\n")
    for words in (["check-config"], ["start"]):
        done = command(*words, env=home, cwd=tmp_path)
        assert done.returncode == 2
        assert (
            done.stderr
            == "sgl-actors: node.toml:2 scheduler.max_bach: unknown key, did you mean max_batch?\n"
        )


def test_a_wrong_flag_exits_2(home: dict[str, str], tmp_path: Path) -> None:
    """A port that is no number, a --set without a value, an unknown option."""
    for words, part in (
        (["start", "--port", "x"], "sgl-actors: --port: expected a whole number, got 'x'\n"),
        (["check-config", "--set", "gateway.prot=1"], "--set gateway.prot: unknown key, did you mean port?"),
        (["run", "--url", "nowhere", "p.py"], "'nowhere' is no address of a node"),
        (["run", "--url", "http://x", "--node", "n", "p.py"], "--url and --node: one of them"),
        (["run", "--api", "openai:m", "--node", "n", "p.py"], "--api and --node: one of them"),
        (["run", "--key", "env:K", "p.py"], "--key: it is of an API, which --api names"),
        (["check-config", "--set", "a"], "--set a: expected SECTION.KEY=VALUE"),
        (["start", "--prot", "1"], "--prot"),
    ):
        done = command(*words, env=home, cwd=tmp_path)
        assert done.returncode == 2
        assert part in done.stderr
        assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_said_before_anything_starts(
    home: dict[str, str], tmp_path: Path
) -> None:
    """Which flag or line, which file, what to do, exit code 2, no traceback; `check-config` says the same."""
    done = command("start", "--model", "none.gguf", env=home, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("sgl-actors: --model: model 'none.gguf': no such file or folder")
    (tmp_path / "node.toml").write_text('[model]\npath = "none.gguf"\n')
    for verb in ("start", "check-config"):
        done = command(verb, env=home, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("sgl-actors: node.toml:2 model.path: model 'none.gguf': no such file")
    assert not (tmp_path / "run").exists()


def test_check_config_prints_values_and_origins(home: dict[str, str], tmp_path: Path) -> None:
    """JSON for programs; an origin for every value."""
    (tmp_path / "node.toml").write_text('[cache]\nmemory = "1MiB"\n')
    environ = home | {"SGL_ACTORS_GATEWAY__PORT": "1"}
    done = command(
        "check-config", "--show-origin", "--json", "--set", "scheduler.chunk=7", env=environ, cwd=tmp_path
    )
    values = json.loads(done.stdout)
    assert values["cache.memory"] == {"value": 1 << 20, "origin": "node.toml:2"}
    assert values["gateway.port"] == {"value": 1, "origin": "environment SGL_ACTORS_GATEWAY__PORT"}
    assert values["scheduler.chunk"] == {"value": 7, "origin": "flag"}
    assert values["scheduler.queue"]["origin"] == "default"
    table = command("check-config", env=environ, cwd=tmp_path)
    assert table.returncode == 0
    assert ["cache.memory", "1048576"] in [line.split() for line in table.stdout.splitlines()]


def test_models_and_version_have_json(home: dict[str, str], tmp_path: Path) -> None:
    """Both can be read by programs."""
    (row,) = json.loads(command("models", "--json", env=home, cwd=tmp_path).stdout)
    assert row["name"] == "smollm2"
    assert command("--version", env=home, cwd=tmp_path).stdout.startswith("sgl-actors 0.")
    assert "sgl-actors" in json.loads(command("version", "--json", env=home, cwd=tmp_path).stdout)


def test_off_a_terminal_there_are_no_escape_codes(home: dict[str, str], tmp_path: Path) -> None:
    """Output that goes to a file is plain text, also where a colour is wished for by nobody."""
    for words in (["models"], ["check-config"], ["--help"]):
        assert "\x1b" not in command(*words, env=home, cwd=tmp_path).stdout


def test_run_runs_a_file_as_python_would(home: dict[str, str], tmp_path: Path) -> None:
    """Arguments, options that look like ours, the file's own folder, its name and its exit code."""
    (tmp_path / "beside.py").write_text("word = 'beside'\n")
    (tmp_path / "p.py").write_text(
        "import sys, beside\nprint(__name__, sys.argv, beside.word, sys.stdin.read())\nsys.exit(3)\n"
    )
    done = command("run", "p.py", "a", "--help", "-x", env=home, cwd=tmp_path, stdin="in")
    assert done.stdout == "__main__ ['p.py', 'a', '--help', '-x'] beside in\n"
    assert done.returncode == 3


def test_run_shows_the_program_s_own_exception(home: dict[str, str], tmp_path: Path) -> None:
    """A fault in a program has its traceback; an error of this package is one line."""
    (tmp_path / "p.py").write_text("raise ValueError('mine')\n")
    done = command("run", "p.py", env=home, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: mine")
    (tmp_path / "q.py").write_text("from sgl_actors.errors import NotReady\nraise NotReady('wait')\n")
    done = command("run", "q.py", env=home, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "sgl-actors: wait\n")
    done = command("run", "none.py", env=home, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "sgl-actors: none.py: no such file\n")


def test_run_sets_where_programs_run(home: dict[str, str], tmp_path: Path) -> None:
    """`--url` is where a program goes that chooses nothing; a node that does not run is said so before the program starts."""
    (tmp_path / "p.py").write_text(
        "from sgl_actors.actors.programs import runtime\nprint([one.endpoint for one in runtime._stack])\n"
    )
    done = command("run", "--url", "http://127.0.0.1:1", "p.py", env=home, cwd=tmp_path)
    assert done.stdout == "['http://127.0.0.1:1']\n"
    done = command("run", "--node", "none", "p.py", env=home, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sgl-actors: no node runs in ")


def test_logs_of_a_node_that_has_ended_can_be_read(home: dict[str, str], tmp_path: Path) -> None:
    """The configuration names the log folder without a running node; a reader that goes away ends us quietly."""
    logs = tmp_path / "logs"
    logs.mkdir()
    line = '{"ts":"2026-01-01T00:00:00.000001Z","level":"info","event":"up","actor":"cache","epoch":1,"request":"r"}\n'
    (logs / "cache.jsonl").write_text(line * 20000)
    (tmp_path / "n.toml").write_text(f'[node]\nlog_dir = "{logs}"\n')
    done = command("logs", "--config", "n.toml", "--json", env=home, cwd=tmp_path)
    assert done.stdout == line * 20000
    (tmp_path / "n.toml").rename(tmp_path / "node.toml")
    assert command("logs", "cache", "--json", env=home, cwd=tmp_path).stdout == line * 20000
    pipeline = f"{sys.executable} -m sgl_actors.cli logs cache --json | head -1"
    piped = subprocess.run(
        ["bash", "-c", pipeline],
        env=home,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (piped.stdout, piped.stderr) == (line, "")
