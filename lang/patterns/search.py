"""Searching a tree of states: each is a branch, its children are forked from it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeVar, overload

from sgl_actors.errors import SglActorsError
from sgl_actors.lang.arguments import MAX_COUNT, MAX_SEED, number, whole
from sgl_actors.lang.errors import InvalidPrimitive
from sgl_actors.lang.ir import ConstantText, Expression
from sgl_actors.lang.patterns.attempts import (
    LOGPROB,
    Attempt,
    Check,
    Score,
    Task,
    fork,
    logprobs_of,
    mean,
    number_of,
    settle,
    truth_of,
)
from sgl_actors.lang.patterns.policies import (
    BestFirst,
    BreadthFirst,
    DepthFirst,
    MonteCarlo,
    Node,
    Policy,
    rank,
)
from sgl_actors.lang.patterns.result import Candidate, Result, child_of, conclude, is_failure, nothing_valid
from sgl_actors.lang.state import MAX_BRANCHES, ProgramState
from sgl_actors.lang.together import together

T = TypeVar("T")

Value = Score[ProgramState] | Literal["logprob"]
"""How promising a branch is: a function of it, plain or async, from 0 to 1; or "logprob", the mean probability of what was generated since the root."""
Expand = Callable[[ProgramState], Awaitable[Iterable[ProgramState]]]
"""Children of a branch, forked from it; none if it is complete."""
POLICIES: Final = ("bfs", "dfs", "best_first", "mcts")


@overload
async def beam(
    s: ProgramState,
    step: Attempt[T],
    value: Value = ...,
    *,
    width: int = ...,
    depth: int = ...,
    branching: int | None = ...,
    goal: Check[ProgramState] | None = ...,
    name: str | None = ...,
) -> Result[T]: ...
@overload
async def beam(
    s: ProgramState,
    step: Expression,
    value: Value = ...,
    *,
    width: int = ...,
    depth: int = ...,
    branching: int | None = ...,
    goal: Check[ProgramState] | None = ...,
    name: str | None = ...,
) -> Result[Any]: ...
async def beam(
    s: ProgramState,
    step: Any,
    value: Any = LOGPROB,
    *,
    width: int = 3,
    depth: int = 3,
    branching: int | None = None,
    goal: Check[ProgramState] | None = None,
    name: str | None = None,
) -> Result[Any]:
    """Go on step by step, and after each keep the best `width` states (beam search).

    Every state that is kept is continued `branching` times, all at once; what is not kept is cancelled. That is branching +
    width · branching · (depth - 1) steps at most.

    Args:
        s: the state to go on from; it is left as it is.
        step: an expression that is added to each branch, or `async def f(branch)` that returns a value.
        value: how promising a branch is: a function of it, plain or async; or "logprob", the mean (geometric) probability of the tokens that the
            steps have generated.
        width: states kept.
        depth: steps.
        branching: continuations of each state; `width` if not given.
        goal: a function of a branch, plain or async: whether it is what is looked for. The first one ends the search.
        name: the variable that is a step's value; by default that of the expression's last gen or select.

    Returns:
        The best state at the last step, or the first at the goal; its value is that of its last step.

    Raises:
        NoValidResult: all branches failed, or none is at the goal.

    Example:
        >>> @function
        ... async def story(s):
        ...     s += "A story:"
        ...     async def length(branch):
        ...         return len(await branch.text())
        ...     s += await beam(s, gen("line", stop="."), length, width=1, depth=2, branching=2)
        >>> lines = {"0.0": " Once", "0.1": " Once upon", "0.1.0": " a time", "0.1.1": " a"}
        >>> (await story.run(backend=Mock(lambda call: lines[call.path]))).text()
        'A story: Once upon a time'
    """
    width = whole("beam", "width", width, 1, MAX_BRANCHES)
    many = whole("beam", "branching", width if branching is None else branching, 1, MAX_BRANCHES)
    task = Task("beam", step, name, logprobs=value == LOGPROB)
    search = Search("beam", s, value, goal, depth, task=task, many=many)
    return await search.run(BreadthFirst(search.root, width))


@overload
async def tree_search(
    s: ProgramState,
    expand: Attempt[T],
    value: Value,
    *,
    n: int,
    policy: str = ...,
    goal: Check[ProgramState] | None = ...,
    width: int = ...,
    depth: int = ...,
    nodes: int = ...,
    threshold: float | None = ...,
    exploration: float = ...,
    seed: int = ...,
    name: str | None = ...,
) -> Result[T]: ...
@overload
async def tree_search(
    s: ProgramState,
    expand: Expand | Expression,
    value: Value,
    *,
    n: int | None = ...,
    policy: str = ...,
    goal: Check[ProgramState] | None = ...,
    width: int = ...,
    depth: int = ...,
    nodes: int = ...,
    threshold: float | None = ...,
    exploration: float = ...,
    seed: int = ...,
    name: str | None = ...,
) -> Result[Any]: ...
async def tree_search(
    s: ProgramState,
    expand: Any,
    value: Any,
    *,
    n: int | None = None,
    policy: str = "best_first",
    goal: Check[ProgramState] | None = None,
    width: int = 3,
    depth: int = 4,
    nodes: int = 64,
    threshold: float | None = None,
    exploration: float = math.sqrt(2),
    seed: int = 0,
    name: str | None = None,
) -> Result[Any]:
    """Search a tree of states for one at the goal, or for the best complete one (tree of thoughts, arXiv 2305.10601).

    A state is complete at the last depth, or if it has no children. What the policy gives up, and in the end all that is not on the way to
    the winner, is cancelled.

    Args:
        s: the root; it is left as it is.
        expand: with `n`, an expression, or `async def f(branch)` that returns a value: each state has `n` children that do it. Without, an
            `async def f(branch)` that returns branches it has forked from the one it is given.
        value: how promising a branch is, from 0 to 1: a function of it, plain or async; or "logprob", the mean (geometric) probability of
            the tokens generated since the root.
        n: children of each state.
        policy: "bfs" keeps the best `width` of a level; "dfs" goes on with the best child and comes back; "best_first" goes on with the best `width` of
            all; "mcts" balances values against visits.
        goal: a function of a branch, plain or async: whether it is what is looked for. The first one ends the search.
        width: see `policy`.
        depth: steps from the root at most.
        nodes: states made at most, the root not counted.
        threshold: states of a lower value are not followed.
        exploration: of mcts: how much little visited states are preferred.
        seed: of mcts: fixes what is drawn among equals.
        name: the variable that is a state's value; by default that of the expression's last gen or select. Without one, what `f` returns, or
            the text that was added since the root.

    Raises:
        NoValidResult: no state is at the goal, or all failed; `candidates` are the states.

    Example:
        >>> @function
        ... async def solve(s):
        ...     s += "Steps:"
        ...     async def right(branch):
        ...         return (await branch["step"]).strip() == "right"
        ...     found = await tree_search(s, gen("step", stop="."), right, n=2, goal=right, policy="bfs")
        ...     return found.value, len(found.candidates)
        >>> (await solve.run(backend=Mock([" wrong", " right"]))).value
        (' right', 2)
    """
    if policy not in POLICIES:
        raise InvalidPrimitive(
            f"tree_search: policy is one of {', '.join(POLICIES)}, not {policy!r:.80}", param="policy"
        )
    if n is None and (not callable(expand)):
        raise InvalidPrimitive("tree_search: an expression needs n, the number of children", param="n")
    search = Search(
        "tree_search", s, value, goal, depth, whole("tree_search", "nodes", nodes, 1, MAX_COUNT), name=name
    )
    if n is None:
        search.expand = expand
    else:
        search.task = Task("tree_search", expand, name, logprobs=value == LOGPROB)
        search.many = whole("tree_search", "n", n, 1, MAX_BRANCHES)
    if threshold is not None:
        search.threshold = number("tree_search", "threshold", threshold, -math.inf, math.inf)
    width = whole("tree_search", "width", width, 1, MAX_BRANCHES)
    policies: dict[str, Callable[[], Policy]] = {
        "bfs": lambda: BreadthFirst(search.root, width),
        "dfs": lambda: DepthFirst(search.root),
        "best_first": lambda: BestFirst(search.root, width),
        "mcts": lambda: MonteCarlo(
            search.root,
            number("tree_search", "exploration", exploration, 0.0, 1e6),
            whole("tree_search", "seed", seed, -MAX_SEED - 1, MAX_SEED),
        ),
    }
    return await search.run(policies[policy]())


@dataclass(slots=True, eq=False)
class Search:
    """One search: expands what the policy says, evaluates the children, and knows when it is over.

    Attributes:
        where: its name, for messages.
        s: the root's state.
        value, goal: see `tree_search`.
        depth: at which states are complete.
        left: states that may still be made.
        task, many: what each of a state's so many children does; or
        expand: what makes the children.
        name: the variable that is a state's value, if `expand` makes them.
        threshold: below it a state is not followed.
    """

    where: str
    s: ProgramState
    value: Any
    goal: Check[ProgramState] | None
    depth: int
    left: int = MAX_COUNT
    task: Task | None = None
    many: int = 0
    expand: Any = None
    name: str | None = None
    threshold: float = -math.inf
    root: Node = field(init=False)
    made: list[Node] = field(init=False, default_factory=list)
    found: list[Node] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.value != LOGPROB and not callable(self.value):
            raise InvalidPrimitive(
                f'{self.where}: value is "logprob" or a function of a branch, not {self.value!r:.80}',
                param="value",
            )
        self.depth = whole(self.where, "depth", self.depth, 1, MAX_COUNT)
        self.root = Node(Candidate(self.s))

    async def run(self, policy: Policy) -> Result[Any]:
        """Search, cancel the losers, and conclude."""
        try:
            while self.left and not self.found and (batch := policy.take()):
                _cut(policy.dropped)
                await self._grow(batch)
                await self._evaluate([child for parent in batch for child in parent.children], policy)
                for parent in batch:
                    parent.children = self._worth_following(parent.children)
                    policy.add(parent, parent.children)
            return await self._conclude()
        except BaseException:
            _cut(self.made)
            raise

    async def _grow(self, batch: Sequence[Node]) -> None:
        """Give all in `batch` their children, as many as there is room for."""
        if self.task is not None:
            for parent in batch:
                room = min(self.many, self.left)
                self._adopt(parent, fork(self.where, parent.candidate.state, room, self.task) if room else [])
            return
        families = await together([self._expanded(parent) for parent in batch])
        for parent, family in zip(batch, families, strict=True):
            parent.complete = not family and parent.candidate.error is None
            self._adopt(parent, [Candidate(state) for state in family])

    async def _expanded(self, node: Node) -> list[ProgramState]:
        """The children that the user's function makes; a failure is the node's own."""
        state = node.candidate.state
        try:
            return [child_of(child, state, self.where) for child in await self.expand(state)]
        except SglActorsError as error:
            if not is_failure(error):
                raise
            node.candidate.error = error
            return []

    def _adopt(self, parent: Node, family: Sequence[Candidate[Any]]) -> None:
        for extra in family[self.left :]:
            extra.state.cancel("the search has no room for more states")
        for candidate in family[: self.left]:
            depth = parent.depth + 1
            node = Node(candidate, parent, len(self.made) + 1, depth, complete=depth >= self.depth)
            parent.children.append(node)
            self.made.append(node)
        self.left -= len(parent.children)

    async def _evaluate(self, children: Sequence[Node], policy: Policy) -> None:
        """Have all children do their step, then say how promising they are; the first at the goal ends it."""
        nodes = {node.candidate: node for node in children}

        async def evaluate(candidate: Candidate[Any]) -> None:
            branch, node = candidate.state, nodes[candidate]
            if self.task is not None:
                candidate.value = await self.task(branch)
            elif self.name is not None:
                candidate.value = await branch[self.name]
            candidate.score = await self._score(node)
            if isinstance(policy, MonteCarlo) and not 0 <= candidate.score <= 1:
                raise InvalidPrimitive(
                    f"{self.where}: mcts needs values from 0 to 1, not {candidate.score!r}", param="value"
                )
            if self.goal is not None and await truth_of(self.goal, branch):
                self.found.append(node)

        await settle(list(nodes), evaluate, decided=lambda: bool(self.found))

    async def _score(self, node: Node) -> float:
        if self.value != LOGPROB:
            return await number_of(self.where, self.value, node.candidate.state)
        name = self.name if self.task is None else self.task.name
        own = await logprobs_of(self.where, node.candidate.state, name)
        node.logprobs = (node.parent.logprobs if node.parent else []) + own
        return math.exp(mean(node.logprobs))

    def _worth_following(self, children: Sequence[Node]) -> list[Node]:
        alive = [child for child in children if child.candidate.error is None]
        _cut([child for child in alive if child.value < self.threshold])
        return [child for child in alive if not child.cut]

    async def _conclude(self) -> Result[Any]:
        """The first at the goal, or the best complete one; if there was no room for one, the best of all."""
        candidates = [node.candidate for node in self.made]
        alive = [node for node in self.made if node.candidate.error is None and not node.cut]
        best = sorted([node for node in alive if node.complete] or alive, key=rank)
        choice = next(iter(best if self.goal is None else self.found), None)
        if choice is None:
            raise nothing_valid(self.where, candidates or [self.root.candidate])
        path = choice.path()[1:]
        result = await conclude(choice.candidate, candidates, [node.candidate.state for node in path])
        if self.task is None and self.name is None:
            choice.candidate.value = "".join(n.text for n in result.added if isinstance(n, ConstantText))
            result = replace(result, value=choice.candidate.value)
        _cut([node for node in self.made if node not in path])
        return result


def _cut(nodes: Iterable[Node]) -> None:
    """Cancel branches that lead nowhere, and all below them."""
    for node in nodes:
        if not node.cut:
            node.cut = True
            node.candidate.state.cancel("not on the way to the best")
