"""The gradients of some tensors, restored after steps that write to them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Gradients:
    """The gradients and the `requires_grad` of some tensors, as they were.

    A step that calls `backward` itself would add to the gradients that the user has accumulated.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._gradients = [tensor.grad for tensor in tensors]
        self._tracked = [tensor.requires_grad for tensor in tensors]

    def written(self) -> bool:
        """Return whether a step left gradients or changed a `requires_grad`, and undo that."""
        pairs = zip(self._tensors, self._tracked, strict=True)
        written = any(t.grad is not None or t.requires_grad is not tracked for t, tracked in pairs)
        self.remove()
        return written

    def remove(self) -> None:
        """Remove all gradients, and restore each `requires_grad`."""
        self._set([None] * len(self._tensors))

    def restore(self) -> None:
        """Restore the gradients, the very same tensors."""
        self._set(self._gradients)

    def _set(self, gradients: Sequence[Tensor | None]) -> None:
        rows = zip(self._tensors, gradients, self._tracked, strict=True)
        for tensor, gradient, tracked in rows:
            tensor.requires_grad_(tracked)
            tensor.grad = gradient
