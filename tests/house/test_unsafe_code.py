"""Nothing in the product runs code that lies in data: no pickle and its kin, no eval, no shell, no unsafe loader. Exceptions are named with their reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.test_house import ROOT, imports, name

FOLDERS = ("actors", "lang", "kernels", "src", "benchmarks")

MODULES = frozenset(
    {
        "pickle", "_pickle", "cPickle", "pickletools", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle", "dbm",
        "multiprocessing", "concurrent.futures.process", "code", "codeop", "telnetlib", "xmlrpc",
    }
)  # fmt: skip
"""Modules that load code from data, or, like multiprocessing, pickle what they send."""
BUILTINS = frozenset({"eval", "exec", "compile", "__import__"})
CALLS = frozenset(
    {
        "torch.load", "torch.hub.load", "torch.package.PackageImporter", "numpy.load", "np.load", "os.system", "os.popen",
        "os.execv", "os.execvp", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "builtins.eval", "builtins.exec",
        "logging.config.fileConfig", "subprocess.getoutput", "subprocess.getstatusoutput", "importlib.util.module_from_spec",
        "runpy.run_path", "runpy.run_module", "zmq.Socket.recv_pyobj", "tempfile.mktemp",
    }
)  # fmt: skip
METHODS = frozenset({"recv_pyobj", "send_pyobj", "read_pickle", "to_pickle", "set_code", "allow_pickle"})
KEYWORDS = {
    "shell": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "weights_only": False,
    "verify": False,
}
"""Keyword arguments with the value that is unsafe; a value that is no constant is, too."""

OWN = "both ends are processes that the benchmark itself has started"
ALLOWED = {
    (
        "src/sgl_actors/cli/programs.py",
        "runpy.run_path",
    ): "runs the program that its user names on the command line",
    (
        "actors/programs/resumption.py",
        "importlib.util.module_from_spec",
    ): "imports the program that the user's own journal names, to go on with it",
    ("benchmarks/scaling.py", "multiprocessing"): OWN,
    ("benchmarks/scaling.py", "multiprocessing.connection"): OWN,
    ("benchmarks/serving/generate.py", "multiprocessing"): OWN,
    ("benchmarks/serving/generate.py", "multiprocessing.connection"): OWN,
}
"""(file, what) with the reason. `importlib.import_module` is not listed: it loads what the node's owner has installed and named in node.toml."""


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else node.attr
    return ""


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that is forbidden."""
    for line, module in imports(tree):
        if module in MODULES or module.split(".")[0] in MODULES:
            yield line, module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in CALLS or alias.name in METHODS:
                    yield node.lineno, f"{node.module}.{alias.name}"
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.lineno, node.id
        if isinstance(node, ast.Attribute):
            if node.attr in METHODS:
                yield node.lineno, node.attr
            if dotted(node) in CALLS:
                yield node.lineno, dotted(node)
        if isinstance(node, ast.keyword) and node.arg in KEYWORDS:
            value = node.value
            if not isinstance(value, ast.Constant) or value.value == KEYWORDS[node.arg]:
                yield value.lineno, f"{node.arg}="


def product() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_nothing_runs_code_that_lies_in_data() -> None:
    """What is found is allowed by name, and what is allowed is there."""
    found = {
        (name(path), what): line
        for path in product()
        for line, what in unsafe(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {
        f"{file}:{line} {what}" for (file, what), line in found.items() if (file, what) not in ALLOWED
    } == set()
    assert ALLOWED.keys() - found.keys() == set()
    assert len(product()) > 300


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import marshal as m", "import dill", "import cloudpickle", "import shelve",
        "from multiprocessing import Pool", "import torch\ntorch.load(f)", "from torch import load", "torch.load(f, weights_only=x)",
        "f(weights_only=False)", "np.load(f)", "eval(x)", "f = exec", "compile(x, '', 'exec')", "__import__(x)", "yaml.load(f)",
        "os.system(x)", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=y)", "socket.recv_pyobj()", "f(trust_remote_code=True)",
        "f(allow_pickle=flag)", "requests.get(u, verify=False)",
    ],
)  # fmt: skip
def test_each_way_is_found(text: str) -> None:
    """Every rule catches what it forbids."""
    assert list(unsafe(ast.parse(text)))


def test_the_rest_is_left_alone() -> None:
    """Safe relatives are no breach."""
    text = "json.load(f)\nre.compile(x)\nself.compile(x)\nf(shell=False)\nf(weights_only=True)\nimport importlib\nmodel.eval()"
    assert list(unsafe(ast.parse(text))) == []
