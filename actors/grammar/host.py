"""The compiling process over its generations: started for the first job, replaced when it has died, has had its share of jobs, or is to be set up otherwise."""

from __future__ import annotations

from typing import Final

from sgl_actors.actors.grammar.process import MODULE, CompilerProcess
from sgl_actors.actors.grammar.protocol import Result, SetUp
from sgl_actors.actors.microkernel.process import resident_bytes
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import Constraint

RECYCLED: Final = 500
"""Jobs after which the process is replaced, so that what it keeps or leaks stays bounded."""


class CompilerHost:
    """One job at a time. Close it in the end.

    Attributes:
        process: that runs now.
        started: how many there were.
    """

    def __init__(self, module: str = MODULE) -> None:
        self.process: CompilerProcess | None = None
        self.started = 0
        self._module = module
        self._set_up: SetUp | None = None

    def __repr__(self) -> str:
        return f"<CompilerHost started={self.started} {self.process}>"

    @property
    def resident(self) -> int:
        """Bytes that the process takes."""
        return resident_bytes(self.process.pid) if self.process is not None else 0

    async def compile(self, constraint: Constraint, set_up: SetUp, seconds: float) -> Result:
        """Start a process if need be, and have it compile within `seconds` of CPU time.

        Raises:
            InvalidRequest: the constraint is wrong in itself.
            CompilerCrashed: the job ended the process.
            NotReady: the process did not come up.
        """
        process = self.process
        if process is not None and (process.jobs >= RECYCLED or not process.alive or self._set_up != set_up):
            await self.close()
        if self.process is None:
            self.process, self._set_up = await CompilerProcess.start(set_up, self._module), set_up
            self.started += 1
        try:
            return await self.process.compile(constraint, seconds)
        except InvalidRequest:
            raise
        except BaseException:  # it has ended, or its answer would be taken for that of the next job
            await self.close()
            raise

    async def close(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is not None:
            await process.close()
