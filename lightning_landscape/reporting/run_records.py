"""The records of a run that is going on, kept in memory for the page at its end."""

from __future__ import annotations

from lightning_landscape.reporting.records import Record


class RunRecords:
    """The records of one run, compressed; of a long run evenly chosen ones.

    Args:
        n_most: Probes of a tag to keep, up to twice as many. The first and the last are kept.

    Example:
        >>> kept = RunRecords(n_most=2)
        >>> for step in range(8):
        ...     kept.add(Record("cost", "probe", step, {"seconds": 1.0}))
        >>> [record.step for record in kept.all()]
        [0, 4, 7]
    """

    def __init__(self, n_most: int = 100) -> None:
        self._n_most = n_most
        self._tags: dict[str, _Thinned] = {}
        self.is_shown = True  # nothing was added since they were written to a page
        self.unlogged: set[str] = set()  # tags of scalars that loggers do not get

    def add(self, record: Record) -> None:
        """Keep a record; it replaces the last one of its tag if that is of the same step."""
        own = self._tags.setdefault(record.tag, _Thinned(self._n_most))
        own.add(record.step, record.to_bytes())
        self.is_shown = False

    def all(self) -> list[Record]:
        """Return what is kept, ascending by step."""
        contents = (content for own in self._tags.values() for _, content in own.kept.values())
        return sorted(map(Record.from_bytes, contents), key=lambda record: record.step)


class _Thinned:
    """Every `stride`-th of the records that were added, and the last."""

    def __init__(self, n_most: int) -> None:
        self.kept: dict[int, tuple[int, bytes]] = {}  # by place
        self._n_most, self._stride, self._n = n_most, 1, 0

    def add(self, step: int, content: bytes) -> None:
        last = self._n - 1
        if self._n and self.kept[last][0] == step:
            self.kept[last] = step, content
            return
        if last % self._stride:
            del self.kept[last]
        self.kept[self._n] = step, content
        self._n += 1
        if len(self.kept) > 2 * self._n_most:
            self._stride *= 2
            self.kept = {
                place: one
                for place, one in self.kept.items()
                if place % self._stride == 0 or place == self._n - 1
            }
