"""The threads that compute: with less claim to the cores than those that answer.

A step keeps all cores busy for as long as it takes. Whoever waits for a message (gateway, tokenizer, scheduler, and the worker's own loop) has little to
do and should do it at once: with a higher nice value the compute threads give way within microseconds, and lose next to nothing, as
nobody else wants the cores for long (numbers in docs/design/0021).
"""

from __future__ import annotations

import os
import sys
import threading

from sgl_actors.errors import ConfigError

MOST_NICE = 19
"""Of the system's range -20 to 19; a negative one needs privileges."""


def give_way(nice: int) -> None:
    """Raise the nice value of the calling thread to `nice`; threads that it starts from here on inherit it.

    Only Linux keeps such a value per thread; elsewhere, and where it is that high already, nothing happens.

    Raises:
        ConfigError: not 0 to 19.
    """
    if not 0 <= nice <= MOST_NICE:
        raise ConfigError(f"[model] nice: {nice}, expected 0 to {MOST_NICE}")
    if sys.platform != "linux":
        return
    own = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, own) < nice:
        os.setpriority(os.PRIO_PROCESS, own, nice)
