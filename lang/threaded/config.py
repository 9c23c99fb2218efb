"""What holds for all programs of the sync flavour, under SGLang's names: `global_config`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sgl_actors.errors import ConfigError
from sgl_actors.lang.protocols import Runtime, default_runtime


class GlobalConfig:
    """See the module.

    Attributes:
        verbosity: from 2 on, every run prints its text when its body has ended.
        default_backend: where programs run that are not told; None is a node that is opened for this process.
        skip_special_tokens_in_output: of gens.
        spaces_between_special_tokens_in_out: without effect; there are none.
        enable_precache_with_tracing: without effect: the scheduler has one request of a batch compute the prefix that all share.
        enable_parallel_encoding: without effect: joined texts are computed in their place.

    Example:
        >>> global_config.verbosity = 0  # 2 prints the text of every run
    """

    def __init__(self, fallback: Callable[[], Runtime] = default_runtime) -> None:
        self.verbosity = 0
        self.default_backend: Any = None
        self.skip_special_tokens_in_output = True
        self.spaces_between_special_tokens_in_out = True
        self.enable_precache_with_tracing = True
        self.enable_parallel_encoding = True
        self.fallback = fallback

    def runtime(self, backend: Any = None) -> Runtime:
        """Where a program runs that was given `backend`.

        Raises:
            ConfigError: that is no backend.
        """
        found = self.default_backend if backend is None else backend
        if found is None:
            return self.fallback()
        while not hasattr(found, "start"):
            if not hasattr(found, "endpoint"):
                raise ConfigError(
                    f"backend: {found!r:.80} is no backend; use Runtime(…) or RuntimeEndpoint(url)"
                )
            found = found.endpoint
        runtime: Runtime = found
        return runtime


global_config = GlobalConfig()
