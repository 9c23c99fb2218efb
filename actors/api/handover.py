"""What an API model's actor hands to the class that takes its place in a running node: layout ``api/1``.

Nothing plain. Handles: ``desk``, the `Desk` with the vendor, the line of requests, those under way, and the books; ``settings``, what its vendor was opened with,
which the successor's have to equal. Requests under way are tasks of the incarnation, which stays, and go on meanwhile.
"""

from __future__ import annotations

import msgspec

LAYOUT = "api/1"


class ApiState(msgspec.Struct, frozen=True):
    """Nothing."""
