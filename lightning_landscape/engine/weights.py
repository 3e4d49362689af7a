"""The weights of a module: moved along a direction, and restored bit for bit.

Moving must cost little beside a forward pass. So `add(out=)` writes to a large tensor directly. If
a network has many small tensors, they are computed as one flat block and copied out together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lightning_landscape.engine.tensors import differing, is_dense, put_back, same_bits
from lightning_landscape.params import Params
from lightning_landscape.sharding import is_freed, is_sharded, local, shard_of, with_local

_SMALL = 2**12  # elements: in smaller tensors a call of torch costs more than the sum
_MANY = 16  # small tensors: fewer than this are moved one by one, which is faster
_PIECE = 2**18  # elements compared at a time, so that no comparison copies a whole tensor
# in these types a sum has the same bits alone and in a block; half types round the tails otherwise
_BLOCK_TYPES = (torch.float32, torch.float64)

_BlockKey: TypeAlias = tuple[torch.dtype, torch.device]


@dataclass(frozen=True, eq=False)
class Path:
    """A direction that is prepared for many moves; `Path()` moves nothing.

    Attributes:
        moving: The indices of the tensors it moves.
        single: Tensors that are moved one by one, by index, each with its step.
        blocks: Blocks of small tensors, each with its flat step.
        ends: Values at `alpha = 1`, by index, where rounding makes `start + step` another value.
    """

    moving: frozenset[int] = frozenset()
    single: list[tuple[int, Tensor]] = field(default_factory=list)
    blocks: list[tuple[_Block, Tensor]] = field(default_factory=list)
    ends: dict[int, Tensor] = field(default_factory=dict)


class Weights:
    """The parameters of a module, with their values on opening and their values at `alpha = 0`.

    Args:
        module: The module.

    Attributes:
        names: The names of the parameters; a tied one once.
        parameters: The live parameters, in the same order.
        tensors: The tensors with their values on this rank: the parameters or their shards.
        live: Their values on opening.
        start: Their values at `alpha = 0`.
        everything: All indices.
        displaced: The indices of those that are not at their start.
        written_by_step: The indices of those that an evaluation itself was seen to write to.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        if any(map(is_sharded, named.values())):  # a step may have kept a whole one, now freed
            named = {name: p for name, p in named.items() if not is_freed(p)}
        self.names, self.parameters = list(named), list(named.values())
        self.tensors = [local(parameter) for parameter in self.parameters]
        self._is_sharded = [t is not p for t, p in zip(self.tensors, self.parameters, strict=True)]
        self.index = {name: i for i, name in enumerate(self.names)}
        self.live = [tensor.detach().clone() for tensor in self.tensors]
        self.start = self.live
        self._storages = {_storage(tensor) for tensor in self.tensors}
        self.everything = frozenset(range(len(self.names)))
        self.displaced: frozenset[int] = frozenset()
        self.written_by_step: frozenset[int] = frozenset()
        self._blocks: dict[tuple[int, ...], _Block] = {}
        self._alias()

    def start_at(self, at: Params) -> None:
        """Set the start to other weights; those not named start at their present values."""
        self.start = [self._start_value(i, at.get(name)) for i, name in enumerate(self.names)]
        self.displaced = self.everything if at else frozenset()
        self._blocks = {}  # they hold the former start

    def start_of(self, name: str) -> Tensor:
        """Return the start of a parameter, whole or sharded as the parameter is."""
        i = self.index[name]
        return with_local(self.start[i], self.parameters[i])

    def live_of(self, name: str) -> Tensor:
        """Return the value of a parameter on opening, whole or sharded as the parameter is."""
        i = self.index[name]
        return with_local(self.live[i], self.parameters[i])

    def copy_of_start(self, name: str) -> Tensor:
        """Return a copy-on-write copy of a parameter's start."""
        i = self.index[name]
        start = self.start[i]
        # only of our own clone: the next write to the original would move it in memory
        lazily = start is self.live[i] and is_dense(start)
        copy = torch._lazy_clone(start) if lazily else start.clone()
        return with_local(copy, self.parameters[i])

    def path(self, direction: Params) -> Path:
        """Prepare a direction: its steps, on the devices of the weights and in their types."""
        steps = {self.index[name]: step for name, step in direction.items()}
        single: list[tuple[int, Tensor]] = []
        groups: dict[_BlockKey, list[int]] = {}
        for i, step in steps.items():
            start = self.start[i]
            if step.requires_grad:
                steps[i] = step = step.detach()
            if self._is_sharded[i]:
                steps[i] = step = shard_of(step, self.parameters[i])
            if step.dtype is not start.dtype or step.device != start.device:
                steps[i] = step = step.to(start)
            if _storage(step) in self._storages:
                steps[i] = step = self._copy_as_opened(step)
            key = self._block_keys[i]
            if key:
                groups.setdefault(key, []).append(i)
            elif _moves(step):
                single.append((i, step))
        blocks = [block for indices in groups.values() for block in self._moving(indices, steps)]
        moving = frozenset([i for i, _ in single]).union(*(block.indices for block, _ in blocks))
        ends: Params = getattr(direction, "end", {})
        placed = {self.index[name]: end for name, end in ends.items()}
        placed = {i: shard_of(end, self.parameters[i]) for i, end in placed.items() if i in moving}
        placed = {
            i: self._copy_as_opened(end) if _storage(end) in self._storages else end
            for i, end in placed.items()
        }
        return Path(moving, single, blocks, placed)

    def move(self, path: Path, alpha: float) -> None:
        """Set the weights to `start + alpha * direction`, wherever they are now."""
        if self.written_by_step and not all(map(self._fits, self.written_by_step)):
            self.restore_start(self.written_by_step)  # a parameter has another shape or type now
            self._alias()
        elif [tensor.data_ptr() for tensor in self._plain] != self._addresses:
            self._alias()  # a parameter has other storage now
        moving = path.moving if alpha else frozenset()
        away, written = self.displaced, self.written_by_step
        if away is not moving or written:
            if away is path.moving and not written:  # the last move was along this path
                away = self._retrace(path)
            self.restore_start((away | written) - moving)
        self.displaced = moving
        if not alpha:
            return
        for i, step in path.single:
            if self._is_dense[i]:
                torch.add(self.start[i], step, alpha=alpha, out=self._data[i])
            else:
                put_back([self.tensors[i]], [torch.add(self.start[i], step, alpha=alpha)])
        for block, step in path.blocks:
            block.move(step, alpha)
        if alpha == 1:  # in floating point start + (end - start) need not be the end
            put_back([self.tensors[i] for i in path.ends], list(path.ends.values()))

    def _retrace(self, path: Path) -> frozenset[int]:
        """Copy back the large tensors that a path has moved; return the others it has moved."""
        back = [i for i, _ in path.single if self._is_dense[i]]
        for i in back:
            self._data[i].copy_(self.start[i])
        return path.moving.difference(back)

    def restore_start(self, indices: frozenset[int]) -> None:
        """Set some tensors to their start."""
        if not indices:
            return
        put_back([self.tensors[i] for i in indices], [self.start[i] for i in indices])

    def restore(self) -> None:
        """Restore the values on opening."""
        put_back(self.tensors, self.live)

    def written(self, path: Path, alpha: float) -> frozenset[int]:
        """Return the indices of tensors that do not hold what the last `move` wrote."""
        ends = path.ends if alpha == 1 else {}
        expected = list(self.start)
        sums: dict[int, Tensor] = {}
        if alpha:
            for block, _ in path.blocks:
                for i, part in zip(block.indices, block.parts, strict=True):
                    expected[i] = part
            sums = {i: step for i, step in path.single if i not in ends}
        for i, end in ends.items():
            expected[i] = end
        whole = [i for i in range(len(self.tensors)) if i not in sums]
        found = differing([self.tensors[i] for i in whole], [expected[i] for i in whole])
        return frozenset([whole[i] for i in found]).union(
            i
            for i, step in sums.items()
            if not _is_sum(self.tensors[i], self.start[i], step, alpha)
        )

    def not_at_start(self) -> list[int]:
        """Return the indices of tensors that should be at their start and are not."""
        quiet = sorted(self.everything - self.displaced - self.written_by_step)
        found = differing([self.tensors[i] for i in quiet], [self.start[i] for i in quiet])
        return [quiet[i] for i in found]

    def _start_value(self, i: int, at: Tensor | None) -> Tensor:
        tensor, live = self.tensors[i], self.live[i]
        if at is not None:
            at = shard_of(at.detach(), self.parameters[i])
            return at.clone() if _storage(at) in self._storages else at.to(live)
        return live if same_bits(tensor, live) else tensor.detach().clone()

    def _copy_as_opened(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor that shares memory with the weights, as on opening."""
        self.restore()
        self.displaced = self.everything
        return tensor.detach().clone()

    def _fits(self, i: int) -> bool:
        """Return whether a parameter has the shape, strides and type of its alias."""
        tensor, data = self.tensors[i], self._data[i]
        return (tensor.shape, tensor.stride(), tensor.dtype) == (
            data.shape,
            data.stride(),
            data.dtype,
        )

    def _alias(self) -> None:
        """Take aliases of the parameters' data: writing to these moves no version counter."""
        self._data = [tensor.data for tensor in self.tensors]
        self._is_dense = [is_dense(tensor) for tensor in self.tensors]
        self._plain = list(compress(self.tensors, self._is_dense))
        self._addresses = [tensor.data_ptr() for tensor in self._plain]
        self._block_keys = [_block_key(tensor) for tensor in self.tensors]
        if len(self._block_keys) - self._block_keys.count(None) < _MANY:
            self._block_keys = [None] * len(self._block_keys)
        for block in self._blocks.values():
            block.set_targets([self._data[i] for i in block.indices])

    def _moving(self, indices: list[int], steps: dict[int, Tensor]) -> list[tuple[_Block, Tensor]]:
        """Return the block of those small tensors that a direction moves, and their flat step."""
        with torch.no_grad():
            flat = torch.cat([steps[i].reshape(-1) for i in indices])
        sizes = [steps[i].numel() for i in indices]
        # all at once: a test of each tensor would cost more than moving it
        moved = np.logical_or.reduceat(flat.cpu().numpy() != 0, np.cumsum([0, *sizes[:-1]]))
        if not moved.all():
            indices = [i for i, moves in zip(indices, moved, strict=True) if moves]
            if not indices:
                return []
            with torch.no_grad():
                flat = torch.cat([steps[i].reshape(-1) for i in indices])
        key = tuple(indices)
        if key not in self._blocks:
            targets, start = [self._data[i] for i in indices], [self.start[i] for i in indices]
            self._blocks[key] = _Block(key, targets, start)
        return [(self._blocks[key], flat)]


class _Block:
    """Small tensors of one type and device that are moved together."""

    def __init__(
        self, indices: tuple[int, ...], targets: list[Tensor], start: list[Tensor]
    ) -> None:
        self.indices = indices
        self._start = torch.cat([tensor.reshape(-1) for tensor in start])
        self._moved = torch.empty_like(self._start)
        parts = self._moved.split([tensor.numel() for tensor in start])
        self.parts = [part.view(to.shape) for part, to in zip(parts, start, strict=True)]
        self.set_targets(targets)

    def set_targets(self, targets: list[Tensor]) -> None:
        """Set the tensors to write to."""
        self._targets = targets

    def move(self, step: Tensor, alpha: float) -> None:
        """Set the tensors to `start + alpha * step`."""
        torch.add(self._start, step, alpha=alpha, out=self._moved)
        torch._foreach_copy_(self._targets, self.parts)


def _moves(step: Tensor) -> bool:
    """Return whether a step has an entry that is not 0."""
    if not step.numel():
        return False
    plain = type(step) is Tensor and step.is_cpu and step.dtype in _BLOCK_TYPES
    readable = plain and step.layout is torch.strided and not step.is_neg()
    if readable and step.numpy().item(0):  # the first entry is seldom 0
        return True
    # in pieces, to save memory
    pieces = step.reshape(-1).split(_PIECE) if is_dense(step) else [step]
    return any(bool(piece.any()) for piece in pieces)


def _block_key(tensor: Tensor) -> _BlockKey | None:
    small = is_dense(tensor) and 0 < tensor.numel() <= _SMALL and tensor.dtype in _BLOCK_TYPES
    return (tensor.dtype, tensor.device) if small else None


def _storage(tensor: Tensor) -> int:
    if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided:
        return tensor.untyped_storage()._cdata
    return id(tensor)


def _is_sum(tensor: Tensor, start: Tensor, step: Tensor, alpha: float) -> bool:
    """Return whether a tensor is `start + alpha * step` to the bit, in pieces if it is large."""
    now = tensor.detach()
    if tensor.dtype not in _BLOCK_TYPES or not all(
        is_dense(t) and t.is_contiguous() for t in (now, start, step)
    ):
        return same_bits(now, torch.add(start, step, alpha=alpha))
    put = torch.empty(min(_PIECE, now.numel()), dtype=now.dtype, device=now.device)
    pieces = zip(*(t.view(-1).split(_PIECE) for t in (now, start, step)), strict=True)
    return all(
        same_bits(piece, torch.add(a, b, alpha=alpha, out=put[: len(piece)]))
        for piece, a, b in pieces
    )
