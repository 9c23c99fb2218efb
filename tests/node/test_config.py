"""node.toml with flags and environment over it: values in force, their origins, and what is said about mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_actors.actors.node.config import (
    DEFAULT,
    DEFAULT_ACTORS,
    NodeConfig,
    default_runtime_dir,
    load,
    make_runtime_dir,
)
from sgl_actors.actors.node.validation import GAPS, RANGES, SECTIONS, SIZES, parse_size
from sgl_actors.errors import CheckpointError, ConfigError

NONE: dict[str, str] = {}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a node.toml and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "node.toml"
        path.write_text(text)
        return path

    return write


def problems(
    path: Path | None, *, flags: Mapping[str, str] | None = None, environ: Mapping[str, str] = NONE
) -> list[str]:
    """The lines of the error that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load(path, flags=flags, environ=environ)
    return caught.value.message.splitlines()


def test_defaults_are_the_six_actors_each_in_a_process_of_its_own() -> None:
    """Without a file, a node has the seven actors in starting order, each with its own process."""
    config = load(None, environ=NONE)
    assert list(config.actors) == [
        "cache",
        "worker/0",
        "scheduler",
        "grammar",
        "tokenizer",
        "programs",
        "gateway",
    ]
    assert all(spec.process == name for name, spec in config.actors.items())
    assert {origin for _, _, origin in config.rows()} == {DEFAULT}


def test_values_come_from_the_strongest_source(write: Callable[[str], Path]) -> None:
    """A flag beats the environment, which beats the file, which beats the default; each value knows where it is from."""
    path = write("[scheduler]\nmax_batch = 1\nchunk = 2\nqueue = 3\n")
    environ = {"SGL_ACTORS_SCHEDULER__MAX_BATCH": "10", "SGL_ACTORS_SCHEDULER__CHUNK": "20"}
    config = load(path, flags={"scheduler.max_batch": "100"}, environ=environ)
    assert (config.scheduler.max_batch, config.scheduler.chunk, config.scheduler.queue) == (100, 20, 3)
    origins = {key: origin for key, _, origin in config.rows()}
    assert origins["scheduler.max_batch"] == "flag"
    assert origins["scheduler.chunk"] == "environment SGL_ACTORS_SCHEDULER__CHUNK"
    assert origins["scheduler.queue"] == f"{path}:4"
    assert origins["scheduler.policy"] == DEFAULT


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("[scheduler]\n\nmax_bach = 3\n", 3, "scheduler.max_bach: unknown key, did you mean max_batch?"),
        (
            "[scheduler]\npage_size = 4\n",
            2,
            "scheduler.page_size: unknown key, did you mean cache.page_size?",
        ),
        ("# x\n[modle]\npath = 'x'\n", 3, "modle.path: unknown section [modle], did you mean model?"),
        ("port = 3\n", 1, "port: a key outside any section, did you mean gateway.port?"),
        (
            "max_bach = 3\n[node]\n",
            1,
            "max_bach: a key outside any section, did you mean scheduler.max_batch?",
        ),
        ("colour = 'red'\n", 1, "colour: a key outside any section"),
        ("[actors.cache]\nenabled = 'no'\n", 2, "actors.cache.enabled: expected true or false, got 'no'"),
        ("[gateway]\nport = 70000\n", 2, "gateway.port: expected a whole number <= 65535, got 70000"),
        ("[gateway]\nport = true\n", 2, "gateway.port: expected a whole number, got True"),
        ("[gateway]\nport = '80'\n", 2, "gateway.port: expected a whole number, got '80'"),
        ("[cache]\npage_size = 0\n", 2, "cache.page_size: expected a whole number >= 1, got 0"),
        (
            "[cache]\nmemory = '1 GiBB'\n",
            2,
            "cache.memory: expected bytes or a size like \"1GiB\", got '1 GiBB'",
        ),
        ("[cache]\nmemory = '0'\n", 2, "cache.memory: expected a whole number >= 1, got 0"),
        ("[cache]\npinned = 0.95\n", 2, "cache.pinned: expected a number <= 0.9, got 0.95"),
        ("[cache]\nevents = 0\n", 2, "cache.events: expected a whole number >= 1, got 0"),
        (
            "[cache]\neviction = 'lro'\n",
            2,
            "cache.eviction: expected lru, lfu or priority, got 'lro', did you mean lru?",
        ),
        (
            "[scheduler]\npolicy = 'lpn'\n",
            2,
            "scheduler.policy: expected lpm, dfs-weight, fcfs or hrrn, got 'lpn', did you mean lpm?",
        ),
        ("[scheduler]\novertake = -1\n", 2, "scheduler.overtake: expected a whole number >= 0, got -1"),
        ("[scheduler]\nstall = 1.1\n", 2, "scheduler.stall: expected 0 or a number >= 1.2, got 1.1"),
        ("[scheduler]\nsharing = 1\n", 2, "scheduler.sharing: expected true or false, got 1"),
        ("[model]\ndevice = 'gpu'\n", 2, "model.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (
            "[model]\ndtype = 'float23'\n",
            2,
            "model.dtype: expected auto, float32, bfloat16 or float16, got 'float23', did you mean float32?",
        ),
        ("[scheduler]\ntimeout = nan\n", 2, "scheduler.timeout: expected a finite number, got nan"),
        ("[scheduler]\ntimeout = 0\n", 2, "scheduler.timeout: expected a number > 0.0, got 0"),
        ("scheduler = 3\n", 1, "scheduler: expected a table [scheduler] with key = value lines"),
        (
            "[actors]\ncache = 'x'\n",
            2,
            "actors.cache: expected a table [actors.cache] with key = value lines",
        ),
        ("actors = 1\n", 1, "actors: expected a table [actors.NAME] with key = value lines"),
        ("[actors.cache]\nclass = 'nope:X'\n", 2, "actors.cache.class: no module nope"),
        (
            "[actors.cache]\nclass = 'X'\n",
            2,
            "actors.cache.class: expected package.module:Class or the name of an installed plugin, got 'X'",
        ),
        (
            '[actors."worker/1"]\nprocess = "x"\n',
            1,
            "actors.worker/1: an actor of your own needs a class, did you mean worker/0?",
        ),
        ("[actors.mine]\n", 1, "actors.mine: an actor of your own needs a class"),
        ("[actors.root]\nclass = 'json:X'\n", 2, "actors.root.class: 'root' cannot be an actor's name"),
        ("[actors.'../x']\nclass = 'json:X'\n", 2, "actors.../x.class: '../x' cannot be an actor's name"),
        (
            "[supervisor]\nstrategy = 'one_for_two'\n",
            2,
            (
                "supervisor.strategy: expected one_for_one, rest_for_one or one_for_all, got 'one_for_two', "
                "did you mean one_for_one?"
            ),
        ),
        (
            "[node]\nname = 'a/b'\n",
            2,
            "node.name: expected letters, digits, dot, dash, underscore, got 'a/b'",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_and_a_suggestion(
    write: Callable[[str], Path], text: str, line: int, expected: str
) -> None:
    """A wrong key or value reads `file:line key: why, did you mean …`."""
    path = write(text)
    origin = f"{path}:{line}" if not expected.startswith("actors.worker/1") else None
    (message,) = problems(path)
    if origin is None:
        assert message.endswith(expected)
    else:
        assert message == f"{origin} {expected}"


def test_all_mistakes_are_reported_at_once(write: Callable[[str], Path]) -> None:
    """Someone who mends a file sees every problem of it, and of flags and environment, in one go."""
    path = write("[cache]\npage_sice = 1\n[gateway]\nport = -1\n")
    lines = problems(path, flags={"gateway.hots": "x"}, environ={"SGL_ACTORS_SCHEDULER__MAX_BATCH": "many"})
    assert lines == [
        f"{path}:2 cache.page_sice: unknown key, did you mean page_size?",
        f"{path}:4 gateway.port: expected a whole number >= 0, got -1",
        "environment SGL_ACTORS_SCHEDULER__MAX_BATCH scheduler.max_batch: expected a whole number, got 'many'",
        "flag gateway.hots: unknown key, did you mean host?",
    ]


def test_a_flag_is_named_as_it_was_typed() -> None:
    """Somebody who typed `--port` is not told of a key that they never wrote."""
    with pytest.raises(ConfigError) as caught:
        load(
            None,
            flags={"gateway.port": "abc", "cache.pages": "-1"},
            environ=NONE,
            typed={"gateway.port": "--port"},
        )
    assert caught.value.message.splitlines() == [
        "--port: expected a whole number, got 'abc'",
        "flag cache.pages: expected a whole number >= 0, got -1",
    ]


def test_a_model_that_is_not_there_is_a_mistake_of_the_configuration(write: Callable[[str], Path]) -> None:
    """`check_model` says where the name was written, and nothing about a model that is there."""
    path = write('[model]\npath = "none.gguf"\n')
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(path))}:2 model\.path: model 'none\.gguf': no such"
    ):
        load(path, environ=NONE).check_model()
    with pytest.raises(ConfigError, match=r"^--model: model 'x\.gguf'"):
        load(path, flags={"model.path": "x.gguf"}, environ=NONE).check_model({"model.path": "--model"})
    path.with_name("none.gguf").write_bytes(b"GGUF....")
    load(path, environ=NONE).check_model()


def test_text_that_is_no_toml_is_reported_with_its_line(write: Callable[[str], Path]) -> None:
    """A syntax error names the line it is on."""
    path = write("[scheduler]\nmax_batch = \n")
    (message,) = problems(path)
    assert message.startswith(f"{path}:2 ")


def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    """A missing file, a folder and a file in another encoding are each said so, with the path."""
    assert problems(tmp_path / "none.toml") == [f"{tmp_path / 'none.toml'}: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: Is a directory"]
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"[node]\n# \xff\n")
    assert problems(bad) == [f"{bad}:2 not UTF-8 (byte 9)"]


def test_an_actor_keeps_the_defaults_that_its_table_does_not_change(write: Callable[[str], Path]) -> None:
    """`[actors.NAME]` of a known actor changes single keys; the order of the seven stays."""
    config = load(write('[actors.gateway]\nprocess = "front"\n[actors.cache]\nshutdown = 1\n'), environ=NONE)
    assert list(config.actors) == list(DEFAULT_ACTORS)
    assert config.actors["gateway"].process == "front"
    assert config.actors["gateway"].class_ == DEFAULT_ACTORS["gateway"].class_
    assert config.actors["cache"].shutdown == 1.0


def test_an_actor_can_be_added_and_left_out(write: Callable[[str], Path]) -> None:
    """An actor of one's own comes after the seven; `enabled = false` leaves one out."""
    config = load(
        write('[actors.mine]\nclass = "json.decoder:X"\n[actors.gateway]\nenabled = false\n'), environ=NONE
    )
    assert list(config.actors) == [
        "cache",
        "worker/0",
        "scheduler",
        "grammar",
        "tokenizer",
        "programs",
        "mine",
    ]
    assert config.actors["mine"].process == "mine"
    assert config.actors["mine"].restart == "permanent"


def test_actor_names_with_a_slash_can_be_set_from_flag_and_environment() -> None:
    """`worker/0` is written as it is in a flag and as WORKER_0 in a variable."""
    config = load(
        None,
        flags={"actors.worker/0.process": "engine"},
        environ={"SGL_ACTORS_ACTORS__WORKER_0__SHUTDOWN": "9"},
    )
    assert config.actors["worker/0"].process == "engine"
    assert config.actors["worker/0"].shutdown == 9.0


def test_other_variables_are_left_alone() -> None:
    """Variables without `__`, such as SGL_ACTORS_DATA, are no configuration."""
    assert load(None, environ={"SGL_ACTORS_DATA": "/x", "PATH": "/bin"}).origins == {}


def test_text_values_are_read_as_the_type_of_their_field() -> None:
    """A name that looks like a number stays text; a flag for a boolean is read as one."""
    config = load(None, flags={"node.name": "7", "actors.gateway.enabled": "false"}, environ=NONE)
    assert config.node.name == "7"
    assert "gateway" not in config.actors


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1GiB", 1 << 30), ("1.5 MiB", 3 << 19), ("2kb", 2000), ("1TB", 10**12), ("10 b", 10)],
)
def test_sizes_take_decimal_and_binary_units(text: str, size: int) -> None:
    """kB is 1000 bytes, KiB is 1024."""
    assert parse_size(text) == size


@given(st.text())
def test_parse_size_never_raises(text: str) -> None:
    """Any text is a size or None."""
    size = parse_size(text)
    assert size is None or size >= 0


@given(
    st.dictionaries(
        st.sampled_from([*SECTIONS, "tenants", "actors", "nope"]),
        st.one_of(
            st.integers(),
            st.dictionaries(
                st.sampled_from(["port", "path", "memory", "cache", "max_batch", "name", "x y"]),
                st.one_of(
                    st.integers(), st.floats(), st.booleans(), st.text(max_size=3), st.just({}), st.just([1])
                ),
            ),
        ),
    )
)
def test_any_toml_either_loads_or_is_a_configuration_error_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """No content of a well-formed file raises anything but ConfigError, and each problem names a line of it."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(to_toml(data))
    count = path.read_text().count("\n") + 1
    try:
        load(path, environ=NONE)
    except ConfigError as error:
        for line in error.message.splitlines():
            found = re.match(rf"{re.escape(str(path))}:(\d+) \S", line)
            assert found, line
            assert 1 <= int(found[1]) <= count


def to_toml(data: dict[str, Any]) -> str:
    """TOML text of two levels, scalars first (they may not follow a table)."""

    def scalar(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return '"' + "".join(f"\\U{ord(c):08X}" for c in value if not 0xD800 <= ord(c) <= 0xDFFF) + '"'
        return repr(value)

    top = [f"{key} = {value}" for key, value in data.items() if not isinstance(value, dict)]
    tables = [
        f"[{key}]\n" + "\n".join(f'"{name}" = {scalar(v)}' for name, v in value.items())
        for key, value in data.items()
        if isinstance(value, dict)
    ]
    return "\n".join([*top, *tables])


def test_every_rule_belongs_to_a_key_that_exists() -> None:
    """A rule for a key that was renamed would check nothing."""
    fields = {
        f"{s}.{f.encode_name}" for s, struct in SECTIONS.items() for f in msgspec.structs.fields(struct)
    }
    actor_fields = {
        f"actors.*.{f}" for f in ("class", "process", "restart", "shutdown", "start_timeout", "enabled")
    }
    assert (set(RANGES) | SIZES | set(GAPS)) - fields - actor_fields == set()


def test_every_number_of_the_file_has_a_range() -> None:
    """A number without bounds would let a nonsensical value through to an actor."""
    numbers = {
        f"{section}.{field.encode_name}"
        for section, struct in SECTIONS.items()
        for field in msgspec.structs.fields(struct)
        if field.type in (int, float)
    }
    assert numbers - set(RANGES) == set()


def test_defaults_satisfy_their_own_rules() -> None:
    """Writing every default into a file gives the default configuration."""
    config = load(None, environ=NONE)
    flags = {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value, _ in config.rows()
    }
    assert load(None, flags=flags, environ=NONE).to_builtins() == config.to_builtins()


def test_the_repository_s_node_toml_is_valid() -> None:
    """The file that `make start` uses loads without a problem and changes no default."""
    path = Path(__file__).parents[2] / "node.toml"
    config = load(path, environ=NONE)
    assert config.file == str(path)
    default = load(None, environ=NONE)
    assert [row[:2] for row in config.rows()] == [row[:2] for row in default.rows()]


@pytest.mark.model
def test_actors_get_plain_values_and_an_absolute_model_path() -> None:
    """`to_builtins` holds dicts and scalars only, and the file that a model's name stands for."""
    data = load(None, environ=NONE).to_builtins()
    assert msgspec.json.decode(msgspec.json.encode(data)) == data
    path = Path(data["model"]["path"])
    assert path.is_absolute()
    assert path.read_bytes()[:4] == b"GGUF"
    assert data["model"]["served_name"] == "SmolLM2-135M-Instruct"


def test_a_relative_model_path_counts_from_the_file_s_folder(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`path = "w.gguf"` in a node.toml means the file beside it; a flag counts from where the command runs."""
    (tmp_path / "w.gguf").write_bytes(b"GGUF....")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = write('[model]\npath = "w.gguf"\n')
    assert load(path, environ=NONE).to_builtins()["model"]["path"] == str(tmp_path / "w.gguf")
    with pytest.raises(CheckpointError):
        load(path, flags={"model.path": "w.gguf"}, environ=NONE).to_builtins()


def test_folders_follow_the_runtime_directory_of_the_user(tmp_path: Path) -> None:
    """$XDG_RUNTIME_DIR is used if it is set; logs lie in the node's folder unless told otherwise."""
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert default_runtime_dir("a", environ) == tmp_path / "sgl-actors" / "a"
    config = load(None, flags={"node.name": "a"}, environ=environ)
    assert config.runtime_dir == tmp_path / "sgl-actors" / "a"
    assert config.log_dir == tmp_path / "sgl-actors" / "a" / "logs"
    assert load(None, flags={"node.log_dir": "/l"}, environ=environ).log_dir == Path("/l")


def test_a_runtime_directory_is_private(tmp_path: Path) -> None:
    """It is made with mode 0700, also if it was there with more; a link in its place is refused."""
    path = make_runtime_dir(tmp_path / "base" / "node")
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    assert make_runtime_dir(path).stat().st_mode & 0o777 == 0o700
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="is not a folder of this user"):
        make_runtime_dir(link)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"node\.runtime_dir"):
        make_runtime_dir(tmp_path / "file")


def test_a_configuration_travels_as_a_struct() -> None:
    """NodeConfig is frozen: nobody changes it behind its origins' back."""
    with pytest.raises(AttributeError):
        load(None, environ=NONE).file = "x"  # type: ignore[misc]
    assert NodeConfig().actors == {}
