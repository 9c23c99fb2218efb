"""The free pages of the KV pool."""

from __future__ import annotations

from collections.abc import Sequence


class PagePool:
    """Hands out page numbers ``0 .. total-1``, last returned first: their memory is the warmest.

    Runs of consecutive pages come back in one piece and in order, which a worker can read without gathering.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))

    def __repr__(self) -> str:
        return f"<PagePool free={self.free} total={self.total}>"

    @property
    def free(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Remove `count` pages from the free ones; the caller has made sure that there are as many."""
        assert 0 <= count <= len(self._free), f"{count} pages asked of {self!r}"
        if not count:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def give(self, pages: Sequence[int]) -> None:
        """Make `pages` free again; the caller owned them."""
        self._free.extend(reversed(pages))

    def snapshot(self) -> list[int]:
        """The free page numbers, for `check`."""
        return list(self._free)

    def repair(self, used: set[int]) -> None:
        """Make exactly the pages outside `used` free."""
        self._free = [page for page in range(self.total - 1, -1, -1) if page not in used]
