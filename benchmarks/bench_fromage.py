"""The time of one Fromage step, beside a per-tensor loop and SGD with momentum.

    pytest benchmarks --benchmark-only

One process, one thread, CPU. Each round times a step of the loop, one of SGD and one of Fromage, so
that all three see the same machine; the medians and their ratios stand in the `extra_info` of the
result, and the limits below are asserted.
"""

import math
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_landscape.fromage import Fromage


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 161 parameters, 25.6 million elements."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    features = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, features, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, features, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # a batch norm follows
            features = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


# what, shapes, rounds, most of the loop's time, most of SGD's time
CASES = [
    pytest.param([(32,)] * 200, 500, 0.60, 1.45, id="200 small tensors"),
    pytest.param(resnet50(), 40, 0.95, 1.10, id="ResNet-50"),
    pytest.param([(1024, 1024)] * 12, 60, 0.95, 1.00, id="twelve 1024x1024"),
]


@torch.no_grad()
def loop(params: list[nn.Parameter], grads: list[Tensor], lr: float = 0.01) -> None:
    """The formula, tensor by tensor, without an allocation."""
    keep = 1 / math.sqrt(1 + lr**2)
    for param, grad in zip(params, grads, strict=True):
        size = lr * param.norm().item() / grad.norm().item()
        param.add_(grad, alpha=-size).mul_(keep)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@pytest.mark.parametrize(("shapes", "rounds", "of_loop", "of_sgd"), CASES)
def test_step(benchmark, shapes, rounds, of_loop, of_sgd):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    sgd = torch.optim.SGD(params, 1e-3, momentum=0.9, foreach=True)
    fromage = Fromage(params)
    times: dict[str, list[float]] = {"loop": [], "sgd": [], "fromage": []}

    def others() -> None:
        times["loop"].append(seconds(lambda: loop(params, [param.grad for param in params])))
        times["sgd"].append(seconds(sgd.step))

    benchmark.pedantic(
        lambda: times["fromage"].append(seconds(fromage.step)),
        setup=others,
        rounds=rounds,
        warmup_rounds=5,
    )
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    benchmark.extra_info |= {f"{name} [ms]": 1e3 * median for name, median in medians.items()}
    ratios = {name: medians["fromage"] / medians[name] for name in ("loop", "sgd")}
    benchmark.extra_info |= {f"Fromage / {name}": ratio for name, ratio in ratios.items()}
    print({key: round(value, 3) for key, value in benchmark.extra_info.items()})
    assert ratios["loop"] <= of_loop
    assert ratios["sgd"] <= of_sgd
