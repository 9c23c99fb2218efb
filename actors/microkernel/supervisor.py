"""Supervision as a plain state machine (Erlang/OTP supervisor semantics): events in, effects out, time passed in.

Effects are `Begin(name)` and `End(name)`; the shell answers each with `started` or `exited` when it has happened.
A child is restarted by its kind: ``permanent`` always, ``transient`` after an abnormal exit, ``temporary`` never. With the child that failed,
``one_for_one`` restarts it alone, ``rest_for_one`` also those started after it, ``one_for_all`` all of them; the others are ended in reverse order first.
More than `intensity` restarts within `period` seconds escalate: everything is ended, in reverse order, and the first cause is kept. In a group of children that is not
essential they end that group alone.

A child whose specification was changed while it ran (a swap) is on probation for `period` seconds: if it fails then, it is started as it was before; and before anything escalates,
all that are on probation are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from sgl_actors.errors import InvalidRequest

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "rest_for_one", "one_for_all"]


class ChildSpec(msgspec.Struct, frozen=True):
    """One supervised actor.

    Attributes:
        name: its address name.
        path: "module:Class".
        process: OS process it lives in; actors with the same value share one.
        restart: when it is started again.
        start_timeout: seconds until it has to be ready.
        shutdown: seconds for an orderly stop before it is killed.
        settings: JSON of what is laid over its process's configuration, "" for nothing.
        group: whom it stands or falls with; failures are counted, and the strategy goes, by group.
    """

    name: str
    path: str
    process: str
    restart: Restart = "permanent"
    start_timeout: float = 120.0
    shutdown: float = 10.0
    settings: str = ""
    group: str = ""


@dataclass(frozen=True)
class Begin:
    """Start this child."""

    name: str


@dataclass(frozen=True)
class End:
    """Stop this child."""

    name: str


Effect = Begin | End


@dataclass
class Child:
    """State of one child: idle, starting, running, stopping. `leaving`: it is forgotten at its end; `fresh`: it was added and has not been up."""

    spec: ChildSpec
    state: Literal["idle", "starting", "running", "stopping"] = "idle"
    restarts: int = 0
    again: bool = field(default=False)
    leaving: bool = field(default=False)
    fresh: bool = field(default=False)


class Supervisor:
    """See the module.

    Attributes:
        failed: the first cause once it has escalated, else "".
        essential: groups without which nothing goes on.
        given_up: groups that were ended, with the first cause; whoever acts on it takes it out.
        done: everything has ended after `shutdown` or an escalation.
    """

    def __init__(
        self,
        specs: list[ChildSpec],
        strategy: Strategy = "one_for_one",
        intensity: int = 5,
        period: float = 30.0,
    ) -> None:
        self.children = {spec.name: Child(spec) for spec in specs}
        self.strategy = strategy
        self.intensity, self.period = intensity, period
        self.failed = ""
        self.closing = False
        self.essential = {""}
        self.given_up: dict[str, str] = {}
        self._causes: deque[tuple[float, str, str]] = deque()
        self._probation: dict[str, tuple[ChildSpec, float]] = {}

    @property
    def done(self) -> bool:
        """Nothing runs and nothing will."""
        return self.closing and all(child.state == "idle" for child in self.children.values())

    @property
    def ready(self) -> bool:
        """Every child that should run does; one that was added counts once it has."""
        return not self.closing and all(
            child.state == "running"
            or child.fresh
            or (child.state == "idle" and child.spec.restart != "permanent")
            for child in self.children.values()
        )

    def begin(self) -> list[Effect]:
        """Start all, in order."""
        return [self._begin(child) for child in self.children.values()]

    def add(self, spec: ChildSpec) -> list[Effect]:
        """Start one more child, the last in order; `InvalidRequest` if there is one of that name."""
        if spec.name in self.children:
            raise InvalidRequest(f"there is an actor {spec.name!r} already", param="name")
        if self.closing:
            return []
        child = self.children[spec.name] = Child(spec, fresh=True)
        return [self._begin(child)]

    def remove(self, name: str) -> list[Effect]:
        """End a child and forget it."""
        child = self.children[name]
        child.leaving, child.again = True, False
        if child.state == "idle":
            del self.children[name]
            return []
        if child.state == "stopping":
            return []
        child.state = "stopping"
        return [End(name)]

    def changed(self, name: str, spec: ChildSpec, now: float) -> None:
        """From here on a child is started so; if that goes wrong soon, as it was before."""
        before, _ = self._probation.get(name, (self.children[name].spec, now))
        self._probation[name] = (before, now + self.period)
        self.children[name].spec = spec

    def _take_back(self, now: float, *names: str) -> list[Effect]:
        """Have those of `names` that are on probation be as they were before, and start them anew if they run."""
        effects: list[Effect] = []
        for name in names:
            before, until = self._probation.pop(name, (None, now))
            if before is not None and until > now and name in self.children:
                self.children[name].spec = before
                effects += self.restart(name) if self.children[name].state != "idle" else []
        return effects

    def _begin(self, child: Child) -> Effect:
        child.state, child.again = "starting", False
        return Begin(child.spec.name)

    def started(self, name: str) -> list[Effect]:
        """A child is ready."""
        child = self.children[name]
        if child.state == "starting":
            child.state, child.fresh = "running", False
        return []

    def restart(self, name: str) -> list[Effect]:
        """An operator asks for a new incarnation; does not count as a failure."""
        child = self.children[name]
        if self.closing or child.leaving:
            return []
        if child.state == "idle":
            return [self._begin(child)]
        child.again = True
        if child.state == "stopping":
            return []
        child.restarts += 1
        child.state = "stopping"
        return [End(name)]

    def exited(
        self,
        name: str,
        reason: str,
        now: float,
        *,
        normal: bool = False,
        fatal: bool = False,
        same_cause: bool = False,
    ) -> list[Effect]:
        """A child has ended, asked to or not.

        `fatal`: a restart cannot help, escalate. `same_cause`: it ended with another that has been counted (one process held both).
        """
        child = self.children[name]
        asked = child.state == "stopping"
        child.state = "idle"
        if child.leaving:
            del self.children[name]
        if self.closing:
            return self._next_end()
        if asked:
            return self._begin_waiting()
        on_probation = not same_cause and self._probation.get(name, (None, now))[1] > now
        if on_probation:
            self._take_back(now, name)
        if fatal and not on_probation:
            return self._escalate(reason, child, now)
        if child.spec.restart == "temporary" or (child.spec.restart == "transient" and normal):
            return []
        if not same_cause:
            self._causes.append((now, child.spec.group, f"{name}: {reason}"))
        while self._causes and self._causes[0][0] < now - self.period:
            self._causes.popleft()
        own = [cause for _, group, cause in self._causes if group == child.spec.group]
        if len(own) > self.intensity:
            return self._escalate(
                f"{own[0]} (more than {self.intensity} restarts within {self.period:g} s)", child, now
            )
        child.restarts += 1
        child.again = True
        return self._end_siblings(name)

    def _end_siblings(self, name: str) -> list[Effect]:
        group = self.children[name].spec.group
        order = [other for other, child in self.children.items() if child.spec.group == group]
        match self.strategy:
            case "one_for_one":
                others: list[str] = []
            case "rest_for_one":
                others = order[order.index(name) + 1 :]
            case "one_for_all":
                others = [other for other in order if other != name]
        effects: list[Effect] = []
        for other in reversed(others):
            child = self.children[other]
            if child.state in ("starting", "running"):
                child.state, child.again = "stopping", True
                effects.append(End(other))
        return effects or self._begin_waiting()

    def _begin_waiting(self) -> list[Effect]:
        """Start what waits, once nothing is being stopped."""
        if any(child.state == "stopping" for child in self.children.values()):
            return []
        return [self._begin(c) for c in self.children.values() if c.again and c.state == "idle"]

    def _escalate(self, reason: str, child: Child, now: float) -> list[Effect]:
        """Take back what is on probation; without any, give up: the group if it is not essential, else everything."""
        if any(until > now for _, until in self._probation.values()):
            effects = self._take_back(now, *self._probation)
            self._causes.clear()
            child.again = True
            return [*effects, *self._begin_waiting()]
        group = child.spec.group
        if group not in self.essential:
            self.given_up[group] = reason
            names = [name for name, other in self.children.items() if other.spec.group == group]
            return [effect for name in reversed(names) for effect in self.remove(name)]
        self.failed = self.failed or reason
        return self.shutdown()

    def shutdown(self) -> list[Effect]:
        """End all in reverse order, each after the one before it has ended."""
        if self.closing:
            return []
        self.closing = True
        if any(child.state == "stopping" for child in self.children.values()):
            return []
        return self._next_end()

    def _next_end(self) -> list[Effect]:
        if any(child.state == "stopping" for child in self.children.values()):
            return []
        for child in reversed(self.children.values()):
            if child.state in ("starting", "running"):
                child.state = "stopping"
                return [End(child.spec.name)]
        return []
