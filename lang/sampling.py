"""From what a gen says, what `run(...)` says and the program's seed to what the node is asked."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from sgl_actors.actors.tokenizer.messages import SamplingOptions
from sgl_actors.lang.constraints.constraint import Constraint
from sgl_actors.lang.ir import SamplingArgs


def derive_seed(seed: int, path: str, sequence: int) -> int:
    """Seed of the `sequence`-th gen of the stream at `path`: the same for every replay, below 2**63."""
    digest = hashlib.blake2b(f"{seed}/{path}/{sequence}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def resolve(
    own: SamplingArgs, defaults: SamplingArgs, seed: int, constraint: Constraint | None = None
) -> SamplingOptions:
    """Merge: the gen's own arguments, else the run's, else the library's; `seed` unless one of them states another."""
    values: dict[str, Any] = {"seed": seed}
    for arguments in (defaults, own):
        values.update({k: v for k, v in msgspec.structs.asdict(arguments).items() if v is not None})
    return SamplingOptions(**values, constraint=constraint)
