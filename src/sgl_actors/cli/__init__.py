"""The command `sgl-actors`: verbs for people who run nodes and programs.

Exit codes: 0 done; 1 it failed (the reason is one line on stderr); 2 wrong usage or configuration; 130 interrupted.
Everything heavy is imported by the verb that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys

from sgl_actors.errors import ConfigError, SglActorsError

FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def main() -> None:
    """Run one verb and end the process; an error of ours is one clear line, without a traceback."""
    from sgl_actors.cli.app import app

    try:
        app()
    except SglActorsError as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # whoever read our output has gone; let the interpreter's last flush go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def report(error: SglActorsError) -> int:
    """Print an error for people and return the exit code that goes with it."""
    for line in error.message.splitlines() or [type(error).__name__]:
        print(f"sgl-actors: {line}", file=sys.stderr)
    return MISUSED if isinstance(error, ConfigError) else FAILED
