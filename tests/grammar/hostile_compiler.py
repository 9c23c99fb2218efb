"""A compiling process whose engine does what a constraint's source says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sgl_actors.actors.grammar import compiler
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import Constraint


class Output(NamedTuple):
    engine: str
    automaton: bytes
    why: str


class Hostile:
    def __init__(self, tokenizer: str, eos_ids: Sequence[int], size: int, engine: str) -> None:
        if tokenizer == "broken":
            raise RuntimeError(tokenizer)
        self.engine = engine
        self.kept: list[bytearray] = []

    def compile(self, constraint: Constraint) -> Output:
        verb, _, rest = constraint.source.partition(" ")
        action: Callable[[], object] | None = {
            "spin": self.spin,
            "burn": lambda: self.burn(float(rest)),
            "hog": lambda: self.kept.append(bytearray(int(rest) << 20)),
            "abort": os.abort,
            "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "bug": lambda: dict[str, str]()["missing"],
            "deep": self.dive,
            "print": lambda: os.write(1, b"noise"),
            "hold": lambda: Path(rest).read_bytes(),
            "wrong": self.refuse,
        }.get(verb)
        if action is not None:
            action()
        return Output(self.engine, constraint.source.encode(), "")

    def spin(self) -> None:
        while True:
            pass

    def burn(self, seconds: float) -> None:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    def dive(self) -> None:
        self.dive()

    def refuse(self) -> None:
        raise InvalidRequest("regex: unclosed group", param="regex")


def main() -> None:
    compiler.main(Hostile)
