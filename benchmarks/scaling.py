"""What a probe costs where several processes train: collectives, bytes, seconds.

`python benchmarks/scaling.py [--out scaling.json]` trains small networks under DDP and under FSDP2
with 1, 2 and 4 gloo processes on this machine, counts every collective that one probe makes, times
others that are not counted, and prints the tables of docs/scaling.md.
"""

import argparse
import collections
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape import AsymmetryMonitor, GradientBreakdownMonitor

PROCESSES = (1, 2, 4)
WIDTHS = (32, 128, 512)
DIRECTIONS = (2, 4, 8)
LAYERS, POINTS, BATCHES, SAMPLES = 4, 13, 2, 64
KINDS = ("allreduce", "allgather", "reducescatter", "broadcast")
COUNTED, TIMED = 1, (2, 3, 4, 5, 6)  # which probes of a fit; the first one warms up


class Net(LightningModule):
    """Blocks of one linear layer each, and a last one that FSDP2 keeps with the outermost."""

    def __init__(self, width):
        super().__init__()
        hidden = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(LAYERS - 1)]
        self.net = nn.Sequential(*hidden, nn.Linear(width, 10))
        self.width = width

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for block in self.net[:-1]:
                fully_shard(block)
            fully_shard(self.net)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        n = SAMPLES * (1 + COUNTED + len(TIMED) + 1)
        return DataLoader(
            TensorDataset(torch.randn(n, self.width), torch.arange(n) % 10), batch_size=SAMPLES
        )


class Collectives(TorchDispatchMode):
    """Counts collectives by kind, and the bytes that each process puts into them."""

    def __init__(self):
        super().__init__()
        self.n = collections.Counter()
        self.bytes = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, _, name = func._schema.name.partition("::")
        kind = next((k for k in KINDS if k in name.replace("_", "")), None)
        if space in ("c10d", "_c10d_functional") and kind is not None:
            # of torch's own, the first argument is where those two put what they found
            receives = space == "c10d" and kind in ("allgather", "reducescatter")
            tensors = [t for t in tree_leaves(args[receives]) if isinstance(t, torch.Tensor)]
            self.n[kind] += 1
            self.bytes[kind] += sum(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))


def watched(monitor):
    """Let a monitor's probes be counted and timed; return what is found."""
    found, probe, numbers = {"seconds": []}, monitor.probe, iter(range(100))

    def watching(trainer, module, step):
        number = next(numbers)
        if number == COUNTED:
            with Collectives() as seen:
                probe(trainer, module, step)
            found.update(n=dict(seen.n), bytes=dict(seen.bytes))
            return
        if dist.is_initialized():
            dist.barrier()
        began = time.perf_counter()
        probe(trainer, module, step)
        if number in TIMED:
            found["seconds"].append(time.perf_counter() - began)

    monitor.probe = watching
    return found


def monitors(kind, directions):
    if kind == "asymmetry":
        return AsymmetryMonitor(
            every_n_steps=1,
            families=("gaussian",),
            n_directions=directions,
            n_points=POINTS,
            n_batches=BATCHES,
            on_error="raise",
        )
    return GradientBreakdownMonitor(every_n_steps=1, on_error="raise")


def measure(rank, n, port, cases, out):
    """Run all cases in one process of several."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if n > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(n))
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")
    rows = []
    for engine, kind, width, directions in cases:
        seed_everything(0, verbose=False)
        monitor = monitors(kind, directions)
        found = watched(monitor)
        if n == 1:
            strategy = "auto"
        elif engine == "ddp":
            strategy = DDPStrategy()
        else:
            strategy = ModelParallelStrategy(n, 1)
        trainer = Trainer(
            accelerator="cpu",
            devices=n,
            strategy=strategy,
            max_steps=max(TIMED) + 1,
            callbacks=[monitor],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        module = Net(width)
        trainer.fit(module)
        rows.append(
            {
                "engine": engine,
                "processes": n,
                "probe": kind,
                "parameters": sum(p.numel() for p in module.parameters()),
                "directions": directions,
                "collectives": sum(found["n"].values()),
                "kilobytes": sum(found["bytes"].values()) / 1e3,
                "by_kind": found["n"],
                "bytes_by_kind": found["bytes"],
                "formula": formula(engine, kind, n, directions),
                "seconds": min(found["seconds"]),
            }
        )
    if rank == 0:
        Path(out).write_text(json.dumps({"rows": rows, "wire": wire() if n > 1 else {}}))
    elif n > 1:
        wire()
    if n > 1:
        dist.barrier()
        dist.destroy_process_group()


def formula(engine, kind, n, directions):
    """Return how many collectives a probe makes, as docs/scaling.md says."""
    if n == 1:
        return 0
    tensors, groups = 2 * LAYERS, LAYERS  # of weights; that `fully_shard` gathers at once
    forward = groups + (BATCHES - 1) * (groups - 1)
    if kind == "asymmetry":
        if engine == "ddp":
            return 2 + 2 * directions
        return 2 + 2 * forward + directions * (3 + tensors + POINTS * forward)
    etas = 5 + 7
    if engine == "ddp":
        return 1 + (1 + etas) * (1 + tensors) + 2 * directions
    return 1 + (1 + etas) + 4 + etas + 3 * directions + 2 * groups + (2 + etas) * (3 * groups - 1)


def modelled(row, rows, wires):
    """Return the seconds that a probe should take: its passes, what it waits for, what it moves."""
    n = row["processes"]
    same = ("probe", "parameters", "directions")
    alone = next(r for r in rows if r["processes"] == 1 and all(r[k] == row[k] for k in same))
    if n == 1:
        return alone["seconds"]
    shares = {"allgather": n - 1, "allreduce": 2 * (n - 1) / n, "reducescatter": (n - 1) / n}
    moved = sum(shares[kind] * size for kind, size in row["bytes_by_kind"].items())
    wire = wires[n]
    waits = row["collectives"] * wire["latency"] + moved / wire["bandwidth"]
    return alone["seconds"] * max(1, n / os.cpu_count()) + waits


def wire():
    """Time collectives alone: seconds that a tiny one takes, and bytes a second of large ones."""

    def timed(size, repeats):
        tensor, parts = torch.ones(size), [torch.ones(size) for _ in range(dist.get_world_size())]
        for k in range(repeats + 5):
            if k == 5:
                dist.barrier()
                began = time.perf_counter()
            dist.all_gather(parts, tensor)
        return (time.perf_counter() - began) / repeats

    tiny, large = timed(1, 200), timed(2**20, 20)
    return {"latency": tiny, "bandwidth": 4 * 2**20 * (dist.get_world_size() - 1) / (large - tiny)}


def cases():
    middle, most = WIDTHS[1], DIRECTIONS[1]
    for engine in ("ddp", "fsdp2"):
        yield from ((engine, "asymmetry", width, most) for width in WIDTHS)
        yield from ((engine, "asymmetry", middle, d) for d in DIRECTIONS if d != most)
        yield from ((engine, "breakdown", width, 2) for width in WIDTHS)


def table(rows):
    heads = "engine,processes,probe,parameters,directions,collectives,sent (kB),seconds,model (s)"
    yield f"| {heads.replace(',', ' | ')} |"
    yield "|---" * len(heads.split(",")) + "|"
    for row in rows:
        yield (
            f"| {row['engine']} | {row['processes']} | {row['probe']} | {row['parameters']:,} | "
            f"{row['directions']} | {row['collectives']} | {row['kilobytes']:,.1f} | "
            f"{row['seconds']:.2f} | {row['model']:.2f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="scaling.json")
    parser.add_argument("--processes", type=int, nargs="+", default=PROCESSES)
    options = parser.parse_args()
    rows, wires = [], {}
    for n in options.processes:
        chosen = [case for case in cases() if n > 1 or case[0] == "ddp"]
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            torch.multiprocessing.spawn(
                measure, (n, find_free_network_port(), chosen, file.name), nprocs=n
            )
            found = json.loads(Path(file.name).read_text())
        rows += found["rows"]
        wires[n] = found["wire"]
    for row in rows:
        assert row["collectives"] == row["formula"], row
        row["model"] = modelled(row, rows, wires)
    report = {"cores": os.cpu_count(), "torch": torch.__version__, "rows": rows, "wire": wires}
    Path(options.out).write_text(json.dumps(report, indent=1))
    print("\n".join(table(rows)))
    print(json.dumps(wires, indent=1))


if __name__ == "__main__":
    main()
