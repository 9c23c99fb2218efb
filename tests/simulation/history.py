"""One seeded history: what a seed stands for, the faults that it brings, and the verdict."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sgl_actors.actors.microkernel.messages import Actors, Done, ListActors, RestartActor, SwapActor, Swapped
from sgl_actors.actors.microkernel.simulated import SimulatedProcess
from sgl_actors.actors.microkernel.simulated_loop import SimulatedLoop, SimulationError, seeded
from sgl_actors.actors.node.client import NodeClient
from sgl_actors.errors import SglActorsError, SwapFailed
from tests.simulation.invariants import idle_problems, watched
from tests.simulation.simulated_load import (
    PROGRAMS,
    TOPICS,
    Asked,
    Ran,
    backend_of,
    draw_request,
    forget_backends,
)
from tests.simulation.simulated_node import CLASSES, POISON, VOCABULARY, SimulatedClient, Weather, World

DEADLINE = 150.0
"""Virtual seconds that a request or a program may take; all faults are over long before."""
PATIENCE = 400.0
"""Virtual seconds after which a history that has not ended counts as hanging."""
CUT_OFF = {"deadline_exceeded", "actor_down"}
"""How requests of a client may fail whose messages were lost."""
ORDINARY = {"quarantined", "cancelled"}

KINDS = (
    "kill", "kill", "kill two", "kill again", "kill midway", "hang", "starve", "stop", "restart", "swap", "swap", "swap broken", "swap to new process",
    "client crash", "partition", "one-way partition", "break", "slow", "pause client", "stop client", "flush", "pin", "cancel all",
)  # fmt: skip
"""What may be injected; one more often than another."""

HARMLESS = {"swap", "swap broken", "flush", "pin", "slow", "pause client", "client crash", "cancel all"}
"""Faults that no swap may fail by."""
KILLS = ("kill", "kill two", "kill again", "kill midway")
"""What makes the supervisor give up, if it comes often enough."""


@dataclass
class Plan:
    """All that a seed decides before anything runs.

    Attributes:
        settings: of the node.
        faults: (when, kind), in order.
        crowded: the node is too small for its load: refusals are in order.
        fierce: more faults than the supervisor takes: the node may give up.
    """

    seed: int
    rng: Random
    settings: dict[str, Any]
    faults: list[tuple[float, str]]
    requests: int
    programs: int
    poisoned: int
    crowded: bool
    fierce: bool
    horizon: float

    @classmethod
    def of(cls, seed: int) -> Plan:
        """Draw it."""
        rng = Random(seed)
        crowded, fierce = rng.random() < 0.12, rng.random() < 0.08
        page_size = rng.choice([1, 1, 4, 16])
        horizon = rng.choice([0.5, 2.0, 8.0])
        kinds, count = (KILLS, rng.randint(8, 14)) if fierce else (KINDS, rng.choice([0, 1, 1, 2, 3, 5]))
        faults = sorted((rng.random() * horizon, rng.choice(kinds)) for _ in range(count))
        shared = rng.random()
        process = {}
        if shared < 0.15:
            process = dict.fromkeys(CLASSES, "all")
        elif shared < 0.35:
            process = {"scheduler": "core", "cache": "core", "tokenizer": "front", "programs": "front"}
        config = {
            "model": {"path": "bytes.gguf", "served_name": "bytes"},
            "cache": {"pages": (256 if crowded else 2048) // page_size, "page_size": page_size},
            "scheduler": {
                "policy": rng.choice(["lpm", "lpm", "dfs-weight", "fcfs", "hrrn"]),
                "overtake": rng.choice([20, 1024]),
                "sharing": rng.random() < 0.8,
                "overlap": rng.random() < 0.5,
                "max_batch": rng.choice([1, 4, 16]),
                "chunk": rng.choice([8, 64, 512]),
                "queue": 4 if crowded else 1024,
                "speculation": rng.random() < 0.5,
            },
        }
        worker = {
            "delay": rng.choice([0.0, 0.001, 0.02, 0.2]) if not crowded else 0.01,
            "context": 1024,
            "vocabulary": VOCABULARY,
            "poison": POISON,
            "drafts": rng.random() < 0.3,
        }
        settings = {
            "config": config,
            "worker": worker,
            "process": process,
            "strategy": rng.choice(["one_for_one", "one_for_one", "rest_for_one", "one_for_all"]),
            "intensity": 3 if fierce else 1000,
            "period": 30.0,
            "force_codec": rng.random() < 0.5,
            "weather": Weather(
                delay=rng.choice([0.0002, 0.001, 0.01]),
                spike=rng.choice([0.0, 0.0, 0.02]),
                longest=rng.choice([0.5, 2.0]),
                capacity=64 if crowded else 8192,
            ),
        }
        poisoned = rng.choice([0, 0, 0, 1, 2])
        if settings["strategy"] != "one_for_one":
            poisoned = (
                0  # the scheduler, which knows who is suspected, would be restarted with the worker each time
            )
        return cls(
            seed,
            rng,
            settings,
            faults,
            requests=rng.randint(2, 14),
            programs=rng.choice([0, 1, 1, 2]),
            poisoned=0 if fierce else poisoned,
            crowded=crowded,
            fierce=fierce,
            horizon=horizon,
        )


@dataclass
class Verdict:
    """How a history ended."""

    seed: int
    digest: str
    violations: list[str]
    counts: Counter[str]
    seconds: float = 0.0
    turns: int = 0
    complaints: list[str] = field(default_factory=list)


class History:
    """Runs a plan."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world, self.rng = plan, world, plan.rng
        self.loop = world.loop
        self.asked: list[Asked] = []
        self.ran: list[Ran] = []
        self.permitted = set(ORDINARY)
        self.work: list[tuple[SimulatedClient, Asked | Ran, asyncio.Task[Any]]] = []
        self.errands: list[tuple[SimulatedClient | None, asyncio.Task[Any]]] = []
        world.expected_crashes |= {"Poisoned"}
        self.cut_off: set[SimulatedClient] = set()

    async def run(self) -> None:
        """From the start of the node to its end."""
        world, plan = self.world, self.plan
        if plan.crowded:
            self.permitted |= {"overloaded"}
        if plan.fierce:
            self.permitted |= {"node_gone", "actor_down", "deadline_exceeded", "not_ready"}
        root = await world.start()
        first = await world.client("client-1")
        self.operator = await world.client("operator")
        clients = [first, await world.client("client-2")]
        self.load(clients)
        await self.faults(clients)
        await self.finish(clients)
        self.check_intensity()
        if not world.done.is_set():
            await self.come_to_rest()
            await self.probe()
        for client in world.clients:
            if not client.host.dead:
                await client.task(self.leave(client))
        await world.stop(root)
        left = [p for p in world.launched if not p.host.dead]
        if left:
            world.violated(f"the node has ended, and yet there are {left}")

    async def leave(self, client: SimulatedClient) -> None:
        """Close what the client's programs hold, then the client."""
        backend = backend_of(client)
        await backend.close()
        await client.close()

    # -- load ---------------------------------------------------------------------------------------------

    def load(self, clients: list[SimulatedClient]) -> None:
        plan, rng = self.plan, self.rng
        prefixes = [[rng.randrange(3, POISON) for _ in range(40)] for _ in range(2)]
        for number in range(plan.requests):
            poisoned = number < plan.poisoned
            asked = draw_request(rng, number, prefixes, poisoned=poisoned, longest=24 if plan.crowded else 60)
            self.asked.append(asked)
            self.begin(rng.choice(clients), asked, rng.random() * plan.horizon)
        for _ in range(plan.programs):
            program, topic = rng.choice(PROGRAMS), rng.choice(TOPICS)
            ran = Ran(program, topic, undisturbed()[PROGRAMS.index(program), topic])
            self.ran.append(ran)
            self.begin(rng.choice(clients), ran, rng.random() * plan.horizon / 2)

    def begin(self, client: SimulatedClient, what: Asked | Ran, delay: float) -> None:
        async def later() -> None:
            await asyncio.sleep(delay)
            await what.ask(client, DEADLINE)

        self.work.append((client, what, client.task(later(), name=f"{client.name} asks")))

    # -- faults -------------------------------------------------------------------------------------------

    async def faults(self, clients: list[SimulatedClient]) -> None:
        began = self.loop.time()
        for at, kind in self.plan.faults:
            await asyncio.sleep(max(0.0, began + at - self.loop.time()))
            if self.world.done.is_set():
                return
            self.world.note(f"fault {kind}")
            self.world.counts[f"fault: {kind}"] += 1
            self.inject(kind, clients)

    def victim(self) -> SimulatedProcess | None:
        alive = [process for process in self.world.processes.values() if not process.host.dead]
        return self.rng.choice(alive) if alive else None

    def inject(self, kind: str, clients: list[SimulatedClient]) -> None:
        rng, world = self.rng, self.world
        process = self.victim()
        client = rng.choice(clients) if clients else None
        name = rng.choice(list(CLASSES))
        if process is None or client is None:
            return
        world.note(f"victim {process.name} {client.name} {name}")
        match kind:
            case "kill":
                process.kill()
            case "kill two":
                process.kill()
                if (other := self.victim()) is not None:
                    other.kill()
            case "kill again":
                process.kill()
                self.kill_when_up(process)
            case "kill midway":
                process.transport.fuse = rng.randint(0, 20)
            case "hang":
                process.hang(rng.choice([0.2, 2.0, 8.0]))
            case "starve":
                process.starve(rng.choice([1.0, 5.0]))
            case "stop":
                process.stop(rng.choice([0.2, 2.5, 10.0]))
            case "slow":
                world.network.weather = dataclasses.replace(world.network.weather, spike=0.2)
                self.loop.call_later(2.0, self.calm, world.network.weather)
            case "restart":
                self.errand(lambda node: node.ask("root", RestartActor(name), Done, timeout=60))
            case "swap":
                self.errand(lambda node: self.swap(node, name, CLASSES[name]))
            case "swap broken":
                path = f"tests.simulation.broken_actors:{BROKEN[name]}"
                world.expected_crashes |= {"SwapFailed", "RuntimeError"}
                self.errand(lambda node: self.swap(node, name, path))
            case "swap to new process":
                self.errand(lambda node: self.swap(node, name, CLASSES[name], restart=True))
            case "client crash":
                self.crash(clients, client)
            case "partition":
                self.partition(client, both=True)
            case "one-way partition":
                self.partition(client, both=False)
            case "break":
                world.network.break_(client.endpoint, process.endpoint)
                client.excused = True
            case "pause client":
                client.host.hold()
                self.loop.call_later(rng.choice([0.5, 2.0]), client.host.wake)
            case "stop client":
                client.host.hold()
                world.network.freeze(client.endpoint)
                self.loop.call_later(rng.choice([0.5, 2.0, 5.0]), self.continue_, client)
            case "flush":
                self.errand(lambda node: node.flush())
            case "pin":
                ids = [rng.randrange(3, 200) for _ in range(rng.randint(1, 30))]
                self.errand(lambda node: node.pin(ids, ttl=rng.choice([0.5, 5.0]), timeout=60))
            case "cancel all":
                for _, what, task in self.work[:: rng.choice([2, 3])]:
                    if task.cancel():
                        what.cancelled = True

    def continue_(self, client: SimulatedClient) -> None:
        self.world.network.thaw(client.endpoint)
        client.host.wake()

    def calm(self, weather: Weather) -> None:
        self.world.network.weather = dataclasses.replace(weather, spike=0.0)

    def kill_when_up(self, process: SimulatedProcess) -> None:
        """Kill its successor as it comes up, or shortly before or after."""

        def kill() -> None:
            successor = self.world.processes.get(process.name)
            if successor is not None and successor is not process and not successor.host.dead:
                self.world.counts["killed in recovery"] += 1
                successor.kill()

        self.loop.call_later(self.rng.random() * 0.6, kill)

    def errand(self, what: Callable[[NodeClient], Any]) -> None:
        """Something that an operator wants of the node beside; it may be refused."""
        client = self.operator

        async def go() -> None:
            node = NodeClient(client.context("errand"))
            await asyncio.sleep(0)
            try:
                answer = await what(node)
            except SglActorsError as error:
                self.world.counts[f"errand: {error.code}"] += 1
                self.world.note(f"errand failed: {error.code} {error.message}")
            else:
                self.world.note(f"errand: {type(answer).__name__}")

        self.errands.append((client, client.task(go(), name=f"{client.name} errand")))

    async def swap(self, node: NodeClient, name: str, path: str, *, restart: bool = False) -> Any:
        """Put a class in the place of the one that runs; without other faults that fails only because of another swap."""
        try:
            answer = await node.ask("root", SwapActor(name, path, restart=restart), Swapped, timeout=60)
        except SwapFailed as error:
            others = {kind for _, kind in self.plan.faults} - HARMLESS
            busy = "already" in error.message or "not running" in error.message
            if path == CLASSES[name] and not others and not busy and not self.plan.poisoned:
                self.world.violated(f"swap of {name}: {error.message}")
            raise
        if path != CLASSES[name] and answer.in_place:
            self.world.violated(f"{path} has taken over although it cannot")
        self.world.counts["swapped in place" if answer.in_place else "swapped by restart"] += 1
        return answer

    def crash(self, clients: list[SimulatedClient], client: SimulatedClient) -> None:
        """The client dies; another one asks for the same, with what had come."""
        client.crash()
        clients.remove(client)
        for owner, what, task in list(self.work):
            if owner is not client or task.done():
                continue
            if isinstance(what, Ran) or not clients:
                what.cancelled = True
            else:
                self.world.counts["asked again by another"] += 1
                self.begin(clients[0], what, self.rng.random())
        if not clients:
            self.errands.append((None, self.loop.world.task(self.join_late(clients))))

    def partition(self, client: SimulatedClient, *, both: bool) -> None:
        """Cut a client off from all processes of the node, for a time.

        From all or from none: a client over ipc is on their machine, and one over tcp has a single connection. So one that is cut off is left alone.
        """
        if client in self.cut_off:
            return
        self.cut_off.add(client)
        network, rng = self.world.network, self.rng
        others = [self.world.system.endpoint, *(p.endpoint for p in self.world.processes.values())]
        pairs = [(client.endpoint, other) for other in others]
        if both or rng.random() < 0.5:
            pairs = [*pairs, *((b, a) for a, b in pairs)] if both else [(b, a) for a, b in pairs]
        for source, target in pairs:
            network.cut(source, target)

        def heal() -> None:
            self.world.note(f"healed {client.name}")
            self.cut_off.discard(client)
            for source, target in pairs:
                network.heal(source, target)

        self.loop.call_later(rng.choice([0.3, 2.0, 6.0]), heal)

    async def join_late(self, clients: list[SimulatedClient]) -> None:
        clients.append(await self.world.client(f"client-{len(self.world.clients)}-late"))

    # -- the end ------------------------------------------------------------------------------------------

    async def finish(self, clients: list[SimulatedClient]) -> None:
        """Wait for all that was begun; whoever asks must have had an end by its deadline."""
        world = self.world
        for process in world.launched:
            process.transport.fuse = -1
        work = [task for owner, _, task in self.work if not owner.host.dead]
        alive = work + [task for owner, task in self.errands if owner is None or not owner.host.dead]
        if alive:
            broken = self.loop.create_task(world.broken.wait())
            everything = self.loop.create_task(asyncio.wait(alive))
            await asyncio.wait([broken, everything], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            hung = [task.get_name() for task in alive if not task.done()]
            if hung and not world.violations:
                world.violated(f"still waiting after {PATIENCE:g} s: {hung}")
            broken.cancel()
            everything.cancel()
        if world.violations:
            return
        if world.done.is_set():
            self.permitted |= {"node_gone", "actor_down", "deadline_exceeded"}
        world.counts["deaths"] += len(world.deaths)
        owed: list[Asked | Ran] = [*self.asked, *self.ran]
        for what in owed:
            excused = any(owner.excused for owner, whose, _ in self.work if whose is what)
            what.check(world, self.permitted | (CUT_OFF if excused else set()))
        for task in alive:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                world.violated(f"{task.get_name()} raised {error!r}")

    def check_intensity(self) -> None:
        """More failures than allowed within the period and no escalation, or one without cause."""
        world, settings = self.world, self.plan.settings
        period, intensity = settings["period"], settings["intensity"]
        times = sorted({at for at, _ in world.downs})
        most = max((sum(at <= other <= at + period for other in times) for at in times), default=0)
        failed = world.supervisor.failed
        if failed:
            world.counts["escalated"] += 1
        if bool(failed) != (most > intensity):
            world.violated(
                f"{most} failures within {period:g} s, {intensity} are allowed: {failed or 'no escalation'}"
            )

    async def come_to_rest(self) -> None:
        """The node is whole again and nothing of the load is left in it."""
        world = self.world
        client = await world.client("observer")
        for _ in range(60):
            await asyncio.sleep(1.0)
            if world.done.is_set() or world.violations:
                return
            node = NodeClient(client.context("observer"))
            actors = await client.task(node.ask("root", ListActors(), Actors))
            if actors.ready:
                break
        else:
            world.violated("the node is not ready 60 s after the last fault")
            return
        await asyncio.sleep(8.0)
        for problem in idle_problems(world):
            world.violated(f"at idle: {problem}")

    async def probe(self) -> None:
        """What the node was through, it serves now."""
        if self.world.done.is_set() or self.world.violations:
            return
        await self.world.client("newcomer")
        for client in [one for one in self.world.clients if not one.host.dead]:
            asked = draw_request(Random(1), client.name, [[5] * 40], poisoned=False, longest=20)
            asked.cancel_after = -1
            await client.task(asked.ask(client, 30.0))
            asked.check(self.world, set())


BROKEN = {
    "worker/0": "BrokenWorker",
    "cache": "BrokenCache",
    "scheduler": "BrokenScheduler",
    "tokenizer": "BrokenTokenizer",
    "programs": "BrokenPrograms",
}


def run_history(
    seed: int, trace: Callable[[str], None] | None = None, *, plan: Plan | None = None
) -> Verdict:
    """Run the history of a seed from its beginning to its end."""
    plan = plan or Plan.of(seed)
    loop = SimulatedLoop(seed)
    SimulatedProcess.pids = iter(range(100, 1 << 30))  # type: ignore[assignment]
    with seeded(loop):
        world = World(loop, plan.settings, trace=trace)
        history = History(plan, world)
        with watched(world):
            try:
                loop.run_until_complete(loop.world.task(history.run()))
            except SimulationError as error:
                world.violated(f"{error}")
            except Exception as error:  # noqa: BLE001 - whatever it is, the seed is to be told
                world.violated(f"the harness failed: {''.join(traceback.format_exception(error))}")
            gc.collect(0)
            for complaint in loop.complaints:
                world.violated(f"the loop complains: {complaint}")
            loop.close()
            forget_backends()
    return Verdict(seed, world.digest, world.violations, world.counts, loop.time() - 1000, loop.turns)


@functools.cache
def undisturbed() -> dict[tuple[int, str], Any]:
    """Run all programs in a calm node."""
    plan = Plan.of(0)
    plan.settings = {
        **plan.settings,
        "process": {},
        "strategy": "one_for_one",
        "config": {
            **plan.settings["config"],
            "cache": {"pages": 4096, "page_size": 1},
            "scheduler": {},
        },
        "worker": {"vocabulary": VOCABULARY, "context": 1024},
        "weather": Weather(),
    }
    results: dict[tuple[int, str], Any] = {}
    loop = SimulatedLoop(0)

    async def main() -> None:
        root = await world.start()
        client = await world.client("calm")
        for index, program in enumerate(PROGRAMS):
            for topic in TOPICS:
                ran = Ran(program, topic)
                await client.task(ran.ask(client, DEADLINE))
                assert ran.result is not None, ran.error
                results[index, topic] = ran.result
        await client.task(backend_of(client).close())
        await world.stop(root)

    with seeded(loop):
        world = World(loop, plan.settings)
        with watched(world):
            try:
                loop.run_until_complete(loop.world.task(main()))
            finally:
                loop.close()
                if world.violations:
                    raise AssertionError(world.violations)
            forget_backends()
    return results


def run_seeds(seeds: list[int]) -> list[tuple[int, str, list[str], Counter[str]]]:
    """Run them one after the other."""
    undisturbed()
    gc.collect()
    gc.freeze()
    done = []
    for index, seed in enumerate(seeds):
        verdict = run_history(seed)
        done.append((seed, verdict.digest, verdict.violations, verdict.counts))
        if index % 20 == 19:
            gc.collect()
    return done
