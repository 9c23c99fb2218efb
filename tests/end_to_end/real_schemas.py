"""The hundred schemas of the sample data: function calls and configuration files as people write them.

    python -m tests.end_to_end.real_schemas > tests/end_to_end/real_schemas_ratchet.json

prints what becomes of each now (needs $SGL_ACTORS_DATA), which is the file to check in after something has become better.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.constraint.tasks import TURN
from sgl_actors.actors.tokenizer import vocabulary
from sgl_actors.errors import InvalidRequest
from sgl_actors.lang.constraints.constraint import JSON_SCHEMA, Constraint
from sgl_actors.lang.constraints.engines import Engines
from tests.end_to_end.constrained_cases import Case
from tests.worker.harness import default_model

RATCHET: Final = Path(__file__).with_name("real_schemas_ratchet.json")
DECLINED: Final = "declined: "
_RANKS: Final = ("fsm", "llguidance")


def schemas(data: Path) -> dict[str, Any]:
    """Schemas by id."""
    lines = (data / "json_decode" / "schemas_100.jsonl").read_text("utf-8").splitlines()
    return {row["id"]: row["schema"] for row in map(json.loads, lines)}


def case(name: str, schema: Mapping[str, Any]) -> Case:
    """Asks for an example of a schema in its own words."""
    about = schema.get("description") or schema.get("title") or name.partition("/")[2].removesuffix(".json")
    ask = f"Write a short example of this as JSON: {str(about).strip()[:200]}"
    return Case(name, Constraint(JSON_SCHEMA, json.dumps(schema)), TURN.format(ask))


def verdict(engines: Engines, one: Case) -> str:
    """The engine that takes it, or why none does."""
    try:
        return engines.compile(one.constraint).engine
    except InvalidRequest as error:
        return f"{DECLINED}{error.message}"


def is_better(now: str, before: str) -> bool:
    """Whether a verdict is an improvement: an engine instead of none, the compressed FSM instead of llguidance."""
    ranks = [_RANKS.index(one) if one in _RANKS else len(_RANKS) for one in (now, before)]
    return ranks[0] < ranks[1]


def main() -> None:
    """See the module."""
    path = default_model()
    assert path is not None
    known = vocabulary.load(path)
    engines = Engines(known.tokenizer.to_str(), known.eos_ids, len(known))
    found = schemas(Path(os.environ["SGL_ACTORS_DATA"]))
    verdicts = {name: verdict(engines, case(name, schema)) for name, schema in found.items()}
    print(json.dumps(verdicts, indent=2, ensure_ascii=False))  # noqa: T201


if __name__ == "__main__":
    main()
