"""What users import: its names and signatures are those of a file, and the example of each docstring does what it says.

`public_api.txt` is written anew by

    .venv/bin/python tests/lang/test_public_api.py > tests/lang/public_api.txt

What a change of it means for users belongs into CHANGELOG.md.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import linecache
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgl_actors as sgl
import sgl_actors.lang
from sgl_actors import compat
from sgl_actors.lang.backends.mock import MockCall
from sgl_actors.lang.threaded.loop import background

FILE = Path(__file__).with_name("public_api.txt")
NAMES = sorted(name for name in sgl.__all__ if name != "__version__")
SYNC = "sgl_actors.lang.threaded."
"""Modules of the sync flavour: their examples use its names, and no `await`."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OUTSIDE_LANG = (
    "sgl_actors.actors.programs.api_backend",
    "sgl_actors.actors.programs.mock",
    "sgl_actors.actors.programs.recording",
    "sgl_actors.actors.programs.runtime",
    "sgl_actors.errors",
)
"""Modules beside `lang` whose names are public."""


# -- names and signatures ---------------------------------------------------------------------------------


class Annotation:
    """An annotation as it is written, without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def described(name: str, thing: Any) -> Iterator[str]:
    """Lines of one public name."""
    if inspect.isclass(thing):
        bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
        yield f"class {name}({bases}):" if bases else f"class {name}:"
        yield f"    __init__{signature(thing)}"
        yield from (f"    {line}" for member in sorted(dir(thing)) if (line := member_of(thing, member)))
    elif callable(thing):
        yield f"{function_word(thing)} {name}{signature(thing)}"
    else:
        yield f"{name}: {type(thing).__name__}"


def member_of(cls: type, name: str) -> str:
    """A public member, "" for what Python or a library of others has given it."""
    home = next(one for one in cls.__mro__ if name in one.__dict__)
    if name.startswith("_") or not home.__module__.startswith("sgl_actors"):
        return ""
    value = inspect.getattr_static(cls, name)
    if isinstance(value, str | int):
        return f"{name} = {value!r}"
    return f"{function_word(value)} {name}{signature(value)}" if inspect.isfunction(value) else name


def function_word(function: Any) -> str:
    """How its definition begins."""
    return "async def" if inspect.iscoroutinefunction(function) else "def"


def signature(thing: Any) -> str:
    """The signature as it is written; "(…)" where Python knows none."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(…)"
    parameters = [
        one.replace(annotation=Annotation(one.annotation)) if isinstance(one.annotation, str) else one
        for one in found.parameters.values()
    ]
    returns = found.return_annotation
    shown = found.replace(
        parameters=parameters,
        return_annotation=Annotation(returns) if isinstance(returns, str) else returns,
    )
    return re.sub(r" at 0x\w+", "", str(shown))


def public_api() -> str:
    """What `public_api.txt` should hold."""
    lines: list[str] = []
    for module in (sgl, compat):
        lines += [f"# {module.__name__}", ""]
        for name in sorted(module.__all__):
            lines += described(name, getattr(module, name))
        lines.append("")
    return "\n".join(lines)


def test_the_public_api_is_the_one_that_is_checked_in() -> None:
    """A name or signature that changes does so on purpose: see the module on how to write the file anew."""
    assert public_api() == FILE.read_text("utf-8")


def test_all_names_can_be_imported_and_are_listed_once() -> None:
    """`__all__` is sorted, has no name twice, and `dir()` knows them."""
    for module in (sgl, compat):
        assert sorted(module.__all__) == list(module.__all__)
        assert len(set(module.__all__)) == len(module.__all__)
        assert set(module.__all__) <= set(dir(module))


# -- docstrings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    """So does everything that a user can import; what the example says is run below."""
    assert ">>> " in (inspect.getdoc(getattr(sgl, name)) or "")


@pytest.mark.parametrize("name", [n for n in compat.__all__ if not isinstance(getattr(compat, n), str)])
def test_every_name_of_the_sync_flavour_has_one_too(name: str) -> None:
    """The names of its choice methods and its version are strings, and say what they are."""
    assert ">>> " in (inspect.getdoc(getattr(compat, name)) or "")


def modules() -> Iterator[types.ModuleType]:
    """The language, and what else is public."""
    for found in pkgutil.walk_packages(sgl_actors.lang.__path__, "sgl_actors.lang."):
        yield importlib.import_module(found.name)
    for name in OUTSIDE_LANG:
        yield importlib.import_module(name)


def examples(*, sync: bool) -> list[Any]:
    """Every docstring with an example."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = (test for module in modules() for test in finder.find(module) if test.examples)
    return [
        pytest.param(test, id=test.name.removeprefix("sgl_actors."))
        for test in found
        if test.name.startswith(SYNC) == sync
    ]


def answer(call: MockCall) -> Any:
    """What the model says in examples that bring no script of their own."""
    return call.choices[0] if call.choices else "Paris"


@pytest.mark.parametrize("test", examples(sync=False))
async def test_the_example_of_a_docstring(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints what stands below each line; it knows all public names, may await, and its default backend is a mock."""
    monkeypatch.chdir(tmp_path)
    known = {**test.globs, **{name: getattr(sgl, name) for name in NAMES}, "sgl": sgl}
    sgl.set_default_backend(sgl.Mock(answer))
    try:
        for number, example in enumerate(test.examples):
            check(test, example, await outcome(example.source, known, f"<{test.name}[{number}]>"))
    finally:
        sgl.set_default_backend(None)


@pytest.mark.parametrize("test", examples(sync=True))
def test_the_example_of_a_docstring_of_the_sync_flavour(test: doctest.DocTest) -> None:
    """The same with the names of `sgl_actors.compat`."""
    known = {**test.globs, **{name: getattr(compat, name) for name in compat.__all__}, "sgl": compat}
    mock = sgl.Mock(answer)
    compat.set_default_backend(mock)
    try:
        for example in test.examples:
            coroutine = outcome(example.source, known, f"<{test.name}>")
            with pytest.raises(StopIteration) as done:
                coroutine.send(None)
            check(test, example, done.value.value)
    finally:
        compat.set_default_backend(None)
        background.wait(mock.close)


def check(test: doctest.DocTest, example: doctest.Example, found: str) -> None:
    """That an example has said what it should."""
    want = example.want if example.exc_msg is None else example.exc_msg
    right = doctest.OutputChecker().check_output(want, found, FLAGS)
    assert right, (
        f"{test.name}, line {example.lineno + 1}: {example.source}expected {want!r}, found {found!r}"
    )


async def outcome(source: str, known: dict[str, Any], name: str) -> str:
    """What an example prints, the value of an expression or the last line of a traceback included."""
    output = io.StringIO()
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        with contextlib.redirect_stdout(output):
            body = ast.parse(source).body
            mode = "eval" if len(body) == 1 and isinstance(body[0], ast.Expr) else "exec"
            code = compile(source, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            value = eval(code, known)
            if inspect.iscoroutine(value) and code.co_flags & inspect.CO_COROUTINE:
                value = await value
        return output.getvalue() + ("" if value is None else f"{value!r}\n")
    except Exception as error:  # noqa: BLE001 - the example says which
        return f"{type(error).__name__}: {error}\n"


if __name__ == "__main__":
    sys.stdout.write(public_api())
