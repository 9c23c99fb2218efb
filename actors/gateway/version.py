"""Which release answers."""

from __future__ import annotations

import importlib.metadata

VERSION = importlib.metadata.version("sgl-actors")
FINGERPRINT = f"sgl-actors-{VERSION}"
"""`system_fingerprint` of answers: another release may answer the same request otherwise."""
