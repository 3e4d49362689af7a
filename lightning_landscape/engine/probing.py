"""Any LightningModule and some batches, as an objective: the loss as a function of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parameter import is_lazy

from lightning_landscape._lightning import (
    ConfigurationError,
    as_configuration,
    attached_trainer,
    has_transfer_hooks,
    is_compiled,
    loss_scale,
    precision_context,
    user_step,
)
from lightning_landscape.engine.batch_norm import batch_norms, estimating
from lightning_landscape.engine.batches import Batches, KeptBatch, clone_batch, prepared
from lightning_landscape.engine.isolation import Isolation, Mode, isolated
from lightning_landscape.engine.snapshot import same_bits
from lightning_landscape.engine.weights import Path
from lightning_landscape.objective import LossAlong, Objective, check_direction
from lightning_landscape.params import Params, trainable, widest
from lightning_landscape.ranks import agree, average_over_ranks, gather_batches, n_ranks
from lightning_landscape.sharding import can_recover, is_sharded, sharded_modules

__all__ = ["LossFn", "ModuleObjective", "check_loss_fn", "loss_step", "opened", "probing"]

# it returns a Tensor or a dict[str, Tensor] with "loss"; a LightningCLI would refuse functions that
# are not annotated to
LossFn: TypeAlias = Callable[[nn.Module, Any], Any]

Verify = Literal["first", "always"]

Step: TypeAlias = Callable[[Any, int], Any]

T = TypeVar("T")


@contextmanager
def probing(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    at: Params | None = None,
    trainer: Any | None = None,
    loss_fn: LossFn | None = None,
    mode: Mode = "train",
    seed: int = 0,
    verify: Verify = "first",
) -> Iterator[ModuleObjective]:
    """Open a module as an objective; inside, its weights move; afterwards nothing has changed.

    "Nothing" is meant bit for bit: weights, buffers, gradients, attributes, train/eval flags,
    generators, the log, the global random streams. Everything goes back also when an evaluation
    raises.

    An evaluation is one pass over all the batches (two with `mode="recalibrated"`), each from the
    same state and the same random numbers: the same weights always give the same bits. At most four
    evaluations more are made, to learn what an evaluation writes to: two before the first losses,
    one or two before the first gradient.

    Args:
        module: A LightningModule, or any module when `loss_fn` is given.
        batches: Batches as a dataloader yields them; copied. They go through the module's batch
            transfer hooks once.
        at: Weights to stand at, such as an average; the live ones by default. Parameters it does
            not name stay as they are.
        trainer: Whose precision the steps run in and whose loggers stay out of it; the one the
            module is attached to by default.
        loss_fn: `loss_fn(module, batch)` gives the loss, or a dict with a `"loss"`; in the place of
            `training_step`, and needed where that cannot be called: manual optimisation,
            `dataloader_iter`.
        mode: `"train"`, what the optimizer sees: batch statistics, dropout with one fixed mask;
            `"eval"`: running statistics, no dropout; `"recalibrated"`: no dropout, batch-norm
            statistics averaged over all the batches anew at every point.
        seed: Where every evaluation's random numbers start.
        verify: After which evaluations to look at all that the module holds: the `"first"`, putting
            back only what was seen to be written after the others; or `"always"`, which is slow
            and for debugging: where its losses are others, the module writes at some weights what
            it does not write at the first.

    Yields:
        The objective.

    Raises:
        ConfigurationError: If the module cannot be asked for a loss, `batches` is empty, `at` names
            unknown parameters, or the mode or `verify` is unknown.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> square = lambda module, x: module(x).square().mean()
        >>> with probing(net, [torch.ones(4, 1)], loss_fn=square) as objective:
        ...     objective.losses({"weight": torch.ones(1, 1)}, 2.0)
        tensor([9.], dtype=torch.float64)
        >>> net.weight.item()
        1.0
    """
    if verify not in get_args(Verify):
        raise ConfigurationError(
            f"`verify` must be one of {list(get_args(Verify))}. Got {verify!r}."
        )
    trainer = attached_trainer(module) if trainer is None else trainer
    with torch.inference_mode(False):
        kept = [KeptBatch(clone_batch(batch), i, raw=True) for i, batch in enumerate(batches)]
    with opened(
        module, kept, at=at, trainer=trainer, loss_fn=loss_fn, mode=mode, seed=seed
    ) as objective:
        objective.verifies = verify == "always"
        yield objective


@contextmanager
def opened(
    module: nn.Module,
    batches: list[KeptBatch],
    *,
    at: Params | None = None,
    trainer: Any | None,
    loss_fn: LossFn | None,
    mode: Mode,
    seed: int,
) -> Iterator[ModuleObjective]:
    """Do as `probing` does, with batches that were kept before."""
    if mode not in get_args(Mode):
        raise ConfigurationError(f"`mode` must be one of {list(get_args(Mode))}. Got {mode!r}.")
    if not batches:
        raise ConfigurationError("`batches` must hold at least one batch. Got none.")
    _check_weights(module, at or {})
    step = loss_step(module, loss_fn)
    with isolated(module, trainer=trainer, mode=mode, at=at, seed=seed) as isolation:
        if any(batch.raw for batch in batches):
            batches = [prepared(module, batch, trainer) for batch in batches]
            if has_transfer_hooks(module):  # that may have written too
                isolation.learn(Path(), 0.0)
        isolation.include("batch", [batch.data for batch in batches])
        objective = ModuleObjective(module, isolation, step, batches, mode=mode, trainer=trainer)
        yield objective
        objective.close()


def _check_weights(module: nn.Module, at: Params) -> None:
    with as_configuration():
        trainable(module)
    known = dict(module.named_parameters())
    absent = [name for name, tensor in known.items() if is_lazy(tensor) or tensor.is_meta]
    if absent:
        raise ConfigurationError(
            "`module` must hold its weights: run it once if it has lazy layers, and move it off "
            f"the meta device with to_empty(). Got no values for {absent[:3]}."
        )
    if sharded_modules(module) and not can_recover():
        raise ConfigurationError(
            "`module` must not be sharded by `fully_shard` here: this torch cannot put it right "
            "after a pass that failed. Use torch 2.13 or newer."
        )
    unknown = [name for name in at if name not in known]
    if unknown:
        raise ConfigurationError(
            "`at` must name parameters of the module, as `named_parameters()` spells them. "
            f"Got {unknown[:3]}; known are {list(known)[:5]}."
        )
    for name, tensor in at.items():
        if tensor.shape != known[name].shape:
            raise ConfigurationError(
                f"`at` must have the shapes of the parameters. Got {tuple(tensor.shape)} for "
                f"{name!r}, which has {tuple(known[name].shape)}."
            )


class ModuleObjective:
    """The loss of a module on fixed batches as a function of its trainable weights.

    Made by `probing`; of use inside its context only.

    Attributes:
        mode: How the module is run.
        n_evaluations: How many evaluations were made so far, those to learn from included.
        seconds: What the last evaluation that was learned from took; nan before.
        verifies: Whether every evaluation is looked at, not only the first.
    """

    def __init__(
        self,
        module: nn.Module,
        isolation: Isolation,
        step: Step,
        batches: list[KeptBatch],
        *,
        mode: Mode,
        trainer: Any | None,
    ) -> None:
        self.mode = mode
        self.n_evaluations = 0
        self.seconds = math.nan
        self.verifies = False
        self._isolation = isolation
        self._step = step
        self._trainer = trainer
        self._params = isolation.params
        self._handed_out: Params | None = None
        self._standing: Params | None = None  # elsewhere than it was opened at
        self._device = next(iter(self._params.values())).device
        self._batches = Batches(batches, self._device)
        self._alone = n_ranks() == 1
        self._failure: Exception | None = None  # of this rank, kept until all have heard of it
        self._norms = list(batch_norms(module).values()) if mode == "recalibrated" else []
        # without gradients a compiled step would not run as it was compiled
        self._with_graph = is_compiled(module)
        # what is differentiated are the whole tensors, which only a backward pass leads to shards
        self._by_backward = any(map(is_sharded, self._params.values()))
        self._to_see = {"losses": 2, "gradient": 2}  # evaluations of each kind still to learn from

    @property
    def params(self) -> Params:
        """The trainable weights the objective stands at; what is written to them reaches nobody."""
        if self._handed_out is None:
            self._handed_out = self._isolation.handed_out()
        return self._handed_out

    @property
    def live(self) -> Params:
        """The trainable weights that were found on opening, wherever it stands; only to read."""
        return self._isolation.live

    def at(self, params: Params) -> Objective:
        """Return the same loss, standing at other weights; use it before asking for the next."""
        check_direction(params, self._params)
        return _Elsewhere(self, params)

    def along(self, direction: Params) -> LossAlong:
        """Return a function from alpha to the losses at `params + alpha * direction`."""
        check_direction(direction, self._params)
        self._stand(None)
        return _Along(self, self._isolation.path(direction))

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        """Return the losses at one point, float64 `[n_batches]`; one evaluation."""
        return self.along(direction or {})(alpha)

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses at one point and the gradient of their mean, averaged over ranks.

        One evaluation, forward and backward. Unused parameters have a gradient of zero.
        """
        check_direction(direction or {}, self._params)
        self._stand(None)
        return self._gradient_along(direction or {}, alpha)

    def _gradient_along(self, direction: Params, alpha: float) -> tuple[Tensor, dict[str, Tensor]]:
        path = self._isolation.path(direction)
        found = self._in_lockstep(lambda: self._learned_gradient(path, alpha))
        agree(self._failure, self._device)
        assert found is not None
        losses, gradients = found
        return losses, dict(zip(self._params, average_over_ranks(gradients), strict=True))

    def learn(self) -> None:
        """Make the two evaluations that losses are learned from, unless they were made."""
        self._in_lockstep(self._learn_losses)
        agree(self._failure, self._device)

    def gather(self, losses: Tensor) -> Tensor:
        """Join the batches of all ranks: `[n_points, n_batches]` of each to all of them."""
        agree(self._failure, losses.device)
        return gather_batches(losses)

    @property
    def has_to_look(self) -> bool:
        """Whether more has to happen around an evaluation than to move and to run."""
        return bool(self._to_see["losses"]) or self.verifies or not self._alone

    def walked(self, path: Path, alphas: list[float]) -> list[list[float]]:
        """Return the losses at some alphas, by as little as can stand between two passes."""
        rows: list[list[float]] = []
        with torch.set_grad_enabled(self._with_graph):
            for alpha in alphas:
                self._isolation.move(path, alpha)
                self.n_evaluations += 1
                rows.append(self._run(Tensor.item))
        return rows

    def _stand(self, at: Params | None) -> None:
        """Stand at other weights, or at those it was opened at."""
        if at is not self._standing:
            self._isolation.stand(at)
            self._standing = at

    def close(self) -> None:
        """Raise what went wrong on this rank and was never told."""
        if self._failure is not None:
            raise self._failure

    def _losses(self, path: Path, alpha: float) -> Tensor:
        found = self._in_lockstep(lambda: self._learned_losses(path, alpha))
        if found is None:  # every rank will hear of it when they are gathered
            return torch.full((len(self._batches),), math.nan, dtype=torch.float64)
        return found

    def _in_lockstep(self, evaluate: Callable[[], T]) -> T | None:
        """Keep a failure for `agree`: a rank that left here would leave the others waiting."""
        if self._alone:
            return evaluate()
        if self._failure is not None:
            return None
        try:
            return evaluate()
        except Exception as error:
            self._failure = error
            return None

    def _learned_losses(self, path: Path, alpha: float) -> Tensor:
        self._learn_losses()
        return self._seen("losses", path, alpha, self._forward)

    def _learned_gradient(self, path: Path, alpha: float) -> tuple[Tensor, list[Tensor]]:
        self._learn_losses()
        self._learn_gradient()
        return self._seen("gradient", path, alpha, self._gradient)

    def _learn_losses(self) -> None:
        """See what an evaluation at the centre writes, and whether it needs a graph.

        Losses without a graph are cheaper, but some kernels and some steps give other bits.
        """
        if self._to_see["losses"] < 2:
            return
        with_graph, self._with_graph = self._with_graph, True
        if with_graph:
            self._seen("losses", Path(), 0.0, self._forward)
            return
        losses = self._seen("losses", Path(), 0.0, self._forward_with_outputs)
        self._with_graph = False
        try:
            again = self._look(Path(), 0.0, self._forward_with_outputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # the step takes gradients itself
            self._with_graph = True
        else:
            self._with_graph = not same_bits(losses, again)

    def _learn_gradient(self) -> None:
        """See what a gradient at the centre writes, and how it can be had."""
        if self._to_see["gradient"] < 2:
            return
        try:
            self._seen("gradient", Path(), 0.0, self._gradient)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # reentrant checkpoints refuse `autograd.grad`
            self._by_backward = True
            try:
                self._seen("gradient", Path(), 0.0, self._gradient)
            except RuntimeError:
                raise error from None

    def _seen(self, kind: str, path: Path, alpha: float, evaluate: Callable[[], Any]) -> Any:
        """Evaluate at a point; learn from it as long as too few of its kind were seen."""
        left = self._to_see[kind]
        # the second to learn from is the first that is moved
        if left == 2 or (left and path.moving and alpha) or self.verifies:
            result = self._look(path, alpha, evaluate)
            self._to_see[kind] = max(left - 1, 0)
            return result
        self._isolation.move(path, alpha)
        self.n_evaluations += 1
        return evaluate()

    def _look(self, path: Path, alpha: float, evaluate: Callable[[], Any]) -> Any:
        self._isolation.move(path, alpha)
        self.n_evaluations += 1
        began = time.monotonic()
        try:
            result = evaluate()
            self.seconds = time.monotonic() - began
        finally:
            self._isolation.learn(path, alpha)
        return result

    def _forward(self) -> Tensor:
        return _wide(self._run(_copied))

    def _run(self, read: Callable[[Tensor], T]) -> list[T]:
        """Return the losses, each read before the next batch: its step may write to it."""
        if torch.is_grad_enabled() is not self._with_graph:
            with torch.set_grad_enabled(self._with_graph):
                return self._run(read)
        self._recalibrate()
        with precision_context(self._trainer):
            return [read(self._loss(i, batch)) for i, batch in self._batches]

    def _forward_with_outputs(self) -> Tensor:
        """Return the losses, and with them a number for each output of each module.

        Two kernels that give other bits often agree in the loss, by chance.
        """
        sums: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if type(tensor) is Tensor and tensor.is_floating_point():
                    sums.append(tensor.detach().sum(dtype=widest(tensor.device)))

        hook = register_module_forward_hook(note)
        try:
            losses = self._forward()
            return torch.cat([losses, *(total.reshape(1).to(losses.device) for total in sums)])
        finally:
            hook.remove()

    def _gradient(self) -> tuple[Tensor, list[Tensor]]:
        self._isolation.take_gradients_away()  # a step may have frozen a weight, at some weights
        self._recalibrate()
        weights = list(self._isolation.trainable.values())
        total: list[Tensor] = []
        scale, losses = loss_scale(self._trainer), []
        for i, batch in self._batches:
            with precision_context(self._trainer), torch.enable_grad():
                loss = self._loss(i, batch)
            losses.append(_copied(loss))
            share = loss / (len(self._batches) / scale)
            shares = self._differentiate(share, weights)
            if total:
                torch._foreach_add_(total, shares)
            else:  # each let go of before the next is copied: all would be a gradient more
                shares.reverse()
                total = [torch.zeros_like(weight).add_(shares.pop()) for weight in weights]
        if scale != 1:
            torch._foreach_div_(total, scale)
        return _wide(losses), total

    def _differentiate(self, loss: Tensor, weights: list[Tensor]) -> list[Tensor]:
        if not loss.requires_grad:
            return [torch.zeros_like(weight) for weight in weights]
        keep = self._isolation.keeps_graph
        if not self._by_backward:
            return list(
                torch.autograd.grad(
                    loss, weights, retain_graph=keep, allow_unused=True, materialize_grads=True
                )
            )
        before = [weight.grad for weight in weights]  # of a step that goes backward itself
        for weight in weights:
            weight.grad = None
        loss.backward(retain_graph=keep)
        gradients = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights
        ]
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
        return gradients

    def _loss(self, index: int, batch: Any) -> Tensor:
        output = self._step(batch, index)
        loss = output
        if not isinstance(output, Tensor) and isinstance(output, Mapping):
            loss = output.get("loss", output)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(
                "The step must return its loss as a tensor with one element, or a dict with that "
                f"under 'loss'. Got {_shown(loss)}."
            )
        return loss.reshape(()) if loss.ndim else loss

    def _recalibrate(self) -> None:
        if not self._norms:
            return
        with (
            estimating(self._norms),
            precision_context(self._trainer),
            torch.set_grad_enabled(self._with_graph),  # the step may take gradients itself
        ):
            for i, batch in self._batches.calibrating():
                self._loss(i, clone_batch(batch))


class _Elsewhere:
    """An objective that stands at other weights than the one it belongs to."""

    def __init__(self, objective: ModuleObjective, params: Params) -> None:
        self.params = params
        self.mode: str = objective.mode
        self.gather = objective.gather
        self._objective = objective

    def at(self, params: Params) -> Objective:
        return self._objective.at(params)

    def along(self, direction: Params) -> LossAlong:
        check_direction(direction, self.params)
        self._objective._stand(self.params)
        return _Along(self._objective, self._objective._isolation.path(direction))

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        return self.along(direction or {})(alpha)

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        check_direction(direction or {}, self.params)
        self._objective._stand(self.params)
        return self._objective._gradient_along(direction or {}, alpha)


class _Along:
    """The losses along one direction, which is prepared once."""

    def __init__(self, objective: ModuleObjective, path: Path) -> None:
        self._objective = objective
        self._path = path

    def __call__(self, alpha: float) -> Tensor:
        """Return the losses at an alpha, float64 `[n_batches]`."""
        return self._objective._losses(self._path, alpha)

    def each(self, alphas: list[float]) -> Tensor:
        """Return the losses at some alphas, float64 `[n_points, n_batches]`."""
        if self._objective._device.type != "cpu":  # reading each would wait for the device
            return torch.stack([self(alpha) for alpha in alphas])
        rows: list[list[float]] = []
        while len(rows) < len(alphas) and self._objective.has_to_look:
            rows.append(self(alphas[len(rows)]).tolist())
        rows += self._objective.walked(self._path, alphas[len(rows) :])
        return torch.tensor(rows, dtype=torch.float64)


def check_loss_fn(loss_fn: LossFn | None) -> LossFn | None:
    """Return a setting that is a function or nothing.

    Raises:
        ConfigurationError: If it is something else.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise ConfigurationError(
            f"`loss_fn` must be a function of a module and a batch. Got {loss_fn!r}."
        )
    return loss_fn


def loss_step(module: nn.Module, loss_fn: LossFn | None) -> Step:
    """Return what gives the loss of a batch: `loss_fn` if there is one, else `training_step`.

    Raises:
        ConfigurationError: If there is neither, see `user_step`.
    """
    if loss_fn is None:
        return user_step(module)
    return lambda batch, index: loss_fn(module, batch)


def _copied(loss: Tensor) -> Tensor:
    return loss.detach().clone()


def _wide(losses: list[Tensor]) -> Tensor:
    stacked = torch.stack(losses)
    return (stacked.cpu() if stacked.device.type == "mps" else stacked).double()


def _shown(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a dict of {list(output)}"
    return "None: this batch was skipped" if output is None else type(output).__name__
