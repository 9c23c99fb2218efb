"""Constraints compiled in a process that may be killed, before the requests that carry them are admitted."""
