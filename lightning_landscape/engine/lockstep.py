"""Run on all ranks what may fail on one of them, and leave no other rank waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_landscape.engine.guards import describe_error
from lightning_landscape.ranks import n_ranks

T = TypeVar("T")

_LONGEST_MESSAGE = 512  # bytes of the message that a failed rank sends
_COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
)


class Lockstep:
    """Work of all ranks that may fail on one of them: then all ranks stop, and none waits.

    Inside a `section` an agreement precedes each collective of all ranks, such as one in the user's
    step. A rank that fails announces it without waiting, and goes on with its training. The others
    raise at their next agreement. Agreements have their own process group (gloo, in host memory),
    so that they never pair with a collective of the training. On a single rank nothing is sent.

    All ranks must create it, open its sections and agree in the same order.

    Args:
        alone: Whether to treat this rank as the only one.
    """

    def __init__(self, *, alone: bool = False) -> None:
        several = n_ranks() > 1 and not alone
        self._group: Any = dist.new_group(backend="gloo") if several else None
        self._sent: list[Any] = []  # pending collectives, each with the tensors it needs
        self._failed = False  # here or elsewhere
        self._inside = False

    @property
    def alone(self) -> bool:
        """Whether there is only one rank."""
        return self._group is None

    def begin(self) -> None:
        """Forget a failure that all ranks know of."""
        self._failed = False

    @contextmanager
    def section(self) -> Iterator[None]:
        """Run the body, which may fail on one rank; an exception is announced to the others.

        Raises:
            RuntimeError: At a collective, if another rank has failed.
        """
        if self._group is None or self._inside:
            yield
            return
        self._inside = True
        try:
            with _preceding_collectives(self._agree_before):
                yield
        except Exception as error:
            if not self._failed:
                self._announce(error)
            raise
        finally:
            self._inside = False

    def agree(self) -> None:
        """Raise if another rank has failed; one small collective.

        Raises:
            RuntimeError: With the ranks that failed, and what they raised.
        """
        if self._group is None:
            return
        if self._failed:
            raise RuntimeError("another rank has failed, and nothing more is done together")
        flag = torch.zeros(1)
        dist.all_reduce(flag, group=self._group)
        if float(flag):
            self._failed = True
            messages = _Messages(self._group, "")
            messages.work.wait()
            raise RuntimeError(f"it failed on {messages}")

    def do(self, action: Callable[[], T]) -> T:
        """Call an action without collectives; raise on all ranks if it fails on one."""
        try:
            with self.section():
                result = action()
        except Exception:
            if not self.alone:
                self.finish_failure()
            raise
        try:
            self.agree()
        except RuntimeError:
            self.finish_failure()
            raise
        return result

    def finish_failure(self) -> None:
        """Complete the announcement of a failure, and forget it; called on all ranks together."""
        if self._group is not None and not self._failed:
            with suppress(RuntimeError):
                self.agree()
        for work, _ in self._sent:
            work.wait()
        self._failed, self._sent = False, []

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, after an agreement."""
        if self._group is None:
            return [value]
        self.agree()
        found: list[Any] = [None] * n_ranks()
        dist.all_gather_object(found, value, group=self._group)
        return found

    def mean(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of tensors over ranks, by name, after an agreement."""
        if self._group is None or not tensors:
            return dict(tensors)
        self.agree()
        flat = torch.cat([tensor.double().cpu().reshape(-1) for tensor in tensors.values()])
        dist.all_reduce(flat, group=self._group)
        parts = (flat / n_ranks()).split([tensor.numel() for tensor in tensors.values()])
        pairs = zip(tensors.items(), parts, strict=True)
        return {name: part.reshape(like.shape).to(like) for (name, like), part in pairs}

    def close(self) -> None:
        """Destroy the process group, unless distributed training has ended."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    def _agree_before(self, group: dist.ProcessGroup | None) -> None:
        if group is None or (group is not self._group and group.size() == n_ranks()):
            self.agree()

    def _announce(self, error: Exception) -> None:
        self._failed = True
        flag = torch.ones(1)
        self._sent = [work for work in self._sent if not work[0].is_completed()]
        self._sent.append((dist.all_reduce(flag, group=self._group, async_op=True), flag))
        messages = _Messages(self._group, describe_error(error))
        self._sent.append((messages.work, messages))


class _Messages:
    """A short text of each rank, sent to all ranks."""

    def __init__(self, group: Any, text: str) -> None:
        raw = text.encode()[:_LONGEST_MESSAGE]
        mine = torch.zeros(_LONGEST_MESSAGE, dtype=torch.uint8)
        mine[: len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
        self._mine = mine
        self._found = [torch.empty_like(mine) for _ in range(n_ranks())]
        self.work: Any = dist.all_gather(self._found, mine, group=group, async_op=True)

    def __str__(self) -> str:
        texts = [bytes(t.tolist()).rstrip(b"\0").decode(errors="replace") for t in self._found]
        return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)


@contextmanager
def _preceding_collectives(agree: Callable[[Any], None]) -> Iterator[None]:
    """Call `agree` with the group before each collective of this thread."""
    thread = threading.get_ident()

    def preceded(function: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                everything = [*args, *kwargs.values()]
                agree(next((a for a in everything if isinstance(a, dist.ProcessGroup)), None))
            return function(*args, **kwargs)

        return collective

    before = {name: getattr(dist, name) for name in _COLLECTIVES if hasattr(dist, name)}
    try:
        for name, function in before.items():
            setattr(dist, name, preceded(function))
        yield
    finally:
        for name, function in before.items():
            setattr(dist, name, function)
