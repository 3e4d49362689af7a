"""The records of a run that is going on, kept in memory for the page at its end."""

from __future__ import annotations

from lightning_landscape.reporting.records import Record


class RunRecords:
    """The records of one run, compressed; of a long run a selection of its probes.

    Args:
        n_most: Probes of a tag to keep. From twice as many on, every other one is dropped; the
            first and the last are kept.

    Example:
        >>> kept = RunRecords(n_most=2)
        >>> for step in range(5):
        ...     kept.add(Record("cost", "probe", step, {"seconds": 1.0}))
        >>> [record.step for record in kept.all()]
        [0, 2, 4]
    """

    def __init__(self, n_most: int = 100) -> None:
        self._n_most = n_most
        self._tags: dict[str, dict[int, bytes]] = {}
        self.is_shown = True  # nothing was added since they were written to a page

    def add(self, record: Record) -> None:
        """Keep a record; the last of a tag and step counts."""
        steps = self._tags.setdefault(record.tag, {})
        if len(steps) >= 2 * self._n_most and record.step not in steps:
            for step in list(steps)[1::2]:
                del steps[step]
        steps[record.step] = record.to_bytes()
        self.is_shown = False

    def all(self) -> list[Record]:
        """Return what is kept, ascending by step."""
        contents = (content for steps in self._tags.values() for content in steps.values())
        return sorted(map(Record.from_bytes, contents), key=lambda record: record.step)
