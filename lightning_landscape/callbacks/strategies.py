"""Which strategies of Lightning keep the weights so that they can be moved and averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.sharding import can_recover

_MAY_SHARD = (
    "Use ModelParallelStrategy(data_parallel_size=n, tensor_parallel_size=1) with torch's "
    "fully_shard (FSDP2), or 'ddp' where the weights fit on one device."
)
_UNTRIED = (
    "XLA records what is done to the weights and runs it later, which no test here has ever seen. "
    "Use a GPU or CPU accelerator."
)
_REFUSED = {
    "FSDPStrategy": "FSDP1 keeps the weights in flat shards without names and shapes, which cannot "
    f"be moved one by one. {_MAY_SHARD}",
    "DeepSpeedStrategy": "DeepSpeed's engine keeps the weights, and copies of them, to itself: "
    f"what is moved in the module need not be what runs. {_MAY_SHARD}",
    "XLAStrategy": _UNTRIED,
    "SingleDeviceXLAStrategy": _UNTRIED,
}


def check_trainer(trainer: Any, who: str) -> None:
    """Raise if a callback was given to something else than a Trainer, such as Fabric.

    Raises:
        ConfigurationError: With what to use instead.
    """
    if not hasattr(trainer, "callbacks"):
        raise ConfigurationError(
            f"`trainer` must be a Lightning Trainer for {who} to work with. Got "
            f"{type(trainer).__name__}. In a loop of your own, use `with probing(module, batches, "
            "loss_fn=...) as objective`."
        )


def check_strategy(trainer: Any, who: str) -> None:
    """Raise if the weights are kept in a way that cannot be probed or averaged.

    By class name: the packages some strategies need, and their twins under the other name of
    Lightning, are not there to be imported.

    Raises:
        ConfigurationError: With the reason, and what to use instead.
    """
    strategy = trainer.strategy
    names = [cls.__name__ for cls in type(strategy).__mro__]
    reasons = [_REFUSED[name] for name in names if name in _REFUSED]
    if "ModelParallelStrategy" in names:
        reasons += _reasons_against_sharding(strategy)
    if reasons:
        raise ConfigurationError(
            f"`strategy` must be one that {who} can work with. Got {type(strategy).__name__}: "
            f"{reasons[0]}"
        )


def _reasons_against_sharding(strategy: Any) -> Iterator[str]:
    if (size := strategy.device_mesh["tensor_parallel"].size()) > 1:
        yield (
            f"{size} processes share each batch (tensor_parallel_size), and would count it {size} "
            f"times. {_MAY_SHARD}"
        )
    if not can_recover():
        yield (
            "this torch cannot put FSDP2 right after a pass that failed: the next training step "
            "would be made with moved weights. Use torch 2.13 or newer, or 'ddp'."
        )
