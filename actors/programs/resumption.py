"""Running durable programs again from their journal alone: where their function is, with which arguments and options."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from sgl_actors.actors.programs.journal import Journal, ProgramRow
from sgl_actors.actors.programs.runtime import (
    API_MARK,
    KEY_VARIABLE,
    NODE,
    Backend,
    Connection,
    Node,
    check_key,
)
from sgl_actors.errors import ConfigError, InvalidRequest, SglActorsError
from sgl_actors.lang.durable import RESUMED, unpack_arguments
from sgl_actors.lang.finished import FinishedState
from sgl_actors.lang.function import Function
from sgl_actors.lang.protocols import RunOptions


def listed(file: Path, program_id: str | None = None) -> list[ProgramRow]:
    """Programs of a journal, the oldest first; none where there is no journal.

    Raises:
        JournalUnavailable: it cannot be read.
        InvalidRequest: there is no program of that id.
    """
    rows = []
    if file.exists():
        with Journal(file) as journal, journal.transaction():
            rows = journal.rows(program_id)
    if program_id is not None and not rows:
        raise InvalidRequest(f"journal {file}: there is no program {program_id!r}", param="id")
    return rows


def prune(file: Path, before: float) -> int:
    """Forget programs that finished before that moment (seconds since the epoch); how many."""
    if not file.exists():
        return 0
    with Journal(file) as journal, journal.transaction():
        return journal.prune(before)


async def resume(file: Path, row: ProgramRow, backend: Backend | None = None) -> FinishedState:
    """Have a program go on where it was; what has finished gives its result.

    Args:
        file: the journal.
        row: the program.
        backend: where to run it; by default where it ran.

    Raises:
        ConfigError: its function or its node cannot be found from here.
        SglActorsError: what `Program.run` raises.
    """
    function = find_function(row.function)
    options = msgspec.json.decode(row.options, type=RunOptions)
    arguments = unpack_arguments(function.body, row.arguments)
    program = function.with_arguments(arguments)
    sampling = {k: v for k, v in msgspec.structs.asdict(options.sampling).items() if v is not None}
    run = program.run(
        backend=backend,
        timeout=options.timeout,
        priority=options.priority,
        cache_salt=options.cache_salt,
        fork_hint=options.fork_hint,
        budget=options.budget,
        durable=file,
        id=row.id,
        **sampling,
    )
    return await run


def backend_of(row: ProgramRow) -> Backend:
    """Where a program ran; `ConfigError` if that was nothing that can be opened again."""
    address = row.backend
    if "://" in address:
        endpoint, _, api = address.partition(API_MARK)
        return Connection(endpoint, check_key(os.environ.get(KEY_VARIABLE, "")), api=api)
    if address == NODE:
        return Node()
    if address:
        return Node(address)
    raise ConfigError(
        f"program {row.id!r} ran on a backend that no other process can open; name a node: --url or --node"
    )


def find_function(reference: str) -> Function[...]:
    """The program of a reference (see `lang.durable.reference`); `ConfigError` if it cannot be imported."""
    home, _, name = reference.rpartition(":")
    try:
        module = _load_file(Path(home)) if home.endswith(".py") else importlib.import_module(home)
        found: Any = reduce(getattr, name.split("."), module)
    except SglActorsError:
        raise
    except AttributeError:
        raise ConfigError(
            f"{reference}: there is no such function; one that is defined inside another can only go on by the same call"
        ) from None
    except Exception as error:
        raise ConfigError(f"{reference}: cannot be imported: {type(error).__name__}: {error}") from error
    return found if isinstance(found, Function) else Function(found)


def _load_file(file: Path) -> ModuleType:
    """A script as a module of another name than `__main__`, so that it defines its programs and runs none."""
    name = RESUMED + file.stem
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(file):
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.exists():
        raise ConfigError(f"{file}: no such file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
