"""One topic of the in-process log."""

from dataclasses import dataclass, field

from topics.ports import Record, TopicSpec, TopicState


@dataclass(slots=True)
class MemoryTopic:
    """Its records, a list per partition; `starts` moves up as retention takes them."""

    spec: TopicSpec
    topic_id: str
    starts: list[int]
    records: list[list[Record]] = field(default_factory=list)

    def end(self, index: int) -> int:
        """The offset of the next record."""
        return self.starts[index] + len(self.records[index])

    def trim(self, index: int, offset: int) -> None:
        """Retention: everything before `offset` is gone."""
        start = self.starts[index]
        offset = min(max(offset, start), self.end(index))
        del self.records[index][: offset - start]
        self.starts[index] = offset

    def grow(self, count: int) -> bool:
        """Adds partitions up to `count`; False if it has as many."""
        more = count - len(self.records)
        self.starts += [0] * more
        self.records += [[] for _ in range(more)]
        return more > 0

    def state(self) -> TopicState:
        """As the log describes it."""
        it = self.spec
        return TopicState(
            it.name, len(self.records), it.replication, dict(it.configs), self.topic_id
        )
