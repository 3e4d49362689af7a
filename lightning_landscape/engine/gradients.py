"""The gradients of some tensors, kept while a step may write to them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Gradients:
    """The gradients and the `requires_grad` of some tensors, kept while a step may write to them.

    A step that goes backward itself would add to what the user has accumulated.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._gradients = [tensor.grad for tensor in tensors]
        self._tracked = [tensor.requires_grad for tensor in tensors]

    def written(self) -> bool:
        """Return whether there are gradients again, or others require them; take them away."""
        pairs = zip(self._tensors, self._tracked, strict=True)
        written = any(t.grad is not None or t.requires_grad is not tracked for t, tracked in pairs)
        self.take_away()
        return written

    def take_away(self) -> None:
        """Leave no gradient, and let those require one that did."""
        self._set([None] * len(self._tensors))

    def put_back(self) -> None:
        """Leave the gradients that were there, the very same tensors."""
        self._set(self._gradients)

    def _set(self, gradients: Sequence[Tensor | None]) -> None:
        rows = zip(self._tensors, gradients, self._tracked, strict=True)
        for tensor, gradient, tracked in rows:
            tensor.requires_grad_(tracked)
            tensor.grad = gradient
