"""What the cache is to be told with the next `Commit`: text that has KV, and leases that have ended."""

from __future__ import annotations

from sgl_actors.actors.cache.messages import Commit, Entry
from sgl_actors.actors.scheduler.generation import Generation
from sgl_actors.actors.scheduler.settings import Settings


class Commits:
    """Entries in the order in which the cache has to take them.

    Attributes:
        entries: not sent yet.
        releases: leases that have ended so far: as long as it is the same, there is no more room than there was.
    """

    def __init__(self, settings: Settings) -> None:
        self.entries: list[Entry] = []
        self.releases = 0
        self._settings = settings

    def offer(self, generation: Generation) -> None:
        """Let others find what it has computed, if anybody is to find anything. It keeps its pages."""
        if self._settings.options.reuse:
            self.entries.append(generation.entry(release=False))

    def release(self, generation: Generation) -> None:
        """It gives its pages back, with what it has computed."""
        self.releases += 1
        self.entries.append(generation.entry(release=True, reuse=self._settings.options.reuse))

    def void(self, lease: int) -> None:
        """A lease that nobody uses ends."""
        self.releases += 1
        self.entries.append(Entry(lease, b""))

    def take(self, epoch: int) -> Commit | None:
        """What there is to send, if there is."""
        if not self.entries:
            return None
        entries, self.entries = self.entries, []
        return Commit(epoch, entries)

    def keep(self, commit: Commit) -> None:
        """It could not be sent: it goes before all that has come since."""
        self.entries[:0] = commit.entries
