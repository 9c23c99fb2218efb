"""Whether one tenant can tell from time to first token what another has in the cache.

    python -m benchmarks.isolation [--pairs 200] [--tokens 256] [--check]

A node with two tenants. For each pair of random prompts the first tenant sends one of them; then the second tenant sends both, in random order, and the
time to each first token is taken. The area under the ROC curve is the chance that the prompt which the other one had warmed answered
faster: 0.5 tells nothing. The control is the same with the second tenant warming for itself: there it must tell, so the method can.
Pairs of both kinds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence

import httpx2

from benchmarks.harness import LiveNode, median, running, show, verdict
from sgl_actors.bench.client import complete
from sgl_actors.bench.load import random_prompts

KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
TOML = "[tenants]\n" + "".join(f'{name} = "{key}"\n' for name, key in KEYS.items())
LOWEST, HIGHEST, CONTROL = 0.4, 0.6, 0.9
"""Targets: the area between tenants lies between the first two, the control above the third."""
REPORT = 50
"""Pairs between two lines of output."""


def auc(hits: Sequence[float], misses: Sequence[float]) -> float:
    """Chance that one of `hits` is below one of `misses`, equal ones counting half: the area under the ROC curve (Mann-Whitney U)."""
    below = sum((hit < miss) + 0.5 * (hit == miss) for hit in hits for miss in misses)
    return below / (len(hits) * len(misses))


def bearer(name: str) -> dict[str, str]:
    """Headers of a tenant's requests."""
    return {"Authorization": f"Bearer {KEYS[name]}"}


async def measure(node: LiveNode, pairs: int, tokens: int) -> dict[str, float]:
    """The area for bob, after alice has warmed ("between"), and after bob has himself ("within")."""
    rng = random.Random(0)
    times: dict[str, tuple[list[float], list[float]]] = {"between": ([], []), "within": ([], [])}
    who = {"between": "alice", "within": "bob"}
    async with (
        httpx2.AsyncClient(base_url=node.url, headers=bearer("alice"), timeout=120) as alice,
        httpx2.AsyncClient(base_url=node.url, headers=bearer("bob"), timeout=120) as bob,
    ):
        model = (await bob.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        clients = {"alice": alice, "bob": bob}
        for number in range(pairs):
            for kind, (hits, misses) in times.items():
                known, unknown = random_prompts(2, rng.getrandbits(32), tokens=tokens)
                await complete(clients[who[kind]], model, known, 1)
                order = [(known, hits), (unknown, misses)]
                rng.shuffle(order)
                for prompt, seconds in order:
                    sample = await complete(bob, model, prompt, 1)
                    seconds.append(sample.arrivals[0] - sample.started)
            if (number + 1) % REPORT == 0 or number + 1 == pairs:
                for kind, (hits, misses) in times.items():
                    show(
                        case=kind, pairs=number + 1, auc=auc(hits, misses), ttft_warmed_s=median(hits),
                        ttft_other_s=median(misses),
                    )  # fmt: skip
    return {kind: auc(*both) for kind, both in times.items()}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256, help="of each prompt")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    with running(toml=TOML) as node:
        areas = asyncio.run(measure(node, arguments.pairs, arguments.tokens))
    what = "AUC of TTFT for a prompt that"
    verdict(
        [
            (f"{what} another tenant has warmed", areas["between"], ">=", LOWEST),
            (f"{what} another tenant has warmed", areas["between"], "<=", HIGHEST),
            (f"{what} the tenant itself has warmed (control)", areas["within"], ">=", CONTROL),
        ],
        check=arguments.check,
    )


if __name__ == "__main__":
    main()
