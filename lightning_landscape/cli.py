"""The command line: `lightning-landscape`, for checkpoints and runs that are already there.

    lightning-landscape analyze last.ckpt
    lightning-landscape line last.ckpt last.ckpt:swa
    lightning-landscape plane last.ckpt last.ckpt:swa other.ckpt --html plane.html
    lightning-landscape compare lightning_logs/version_0 lightning_logs/version_1
    lightning-landscape show lightning_logs/version_0

A checkpoint followed by `:swa` is the average that `SWA(name="swa")` saved in it. The module and
the data come from the `config.yaml` that LightningCLI saved beside the checkpoints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

_DEFAULT_FAMILIES = ("gaussian", "uniform@norm", "sign")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after one sentence that says what is wrong."""
    options, rest = _parser().parse_known_args(arguments)
    strange = [word for word in rest if not word.startswith("--trainer.")]
    if strange:
        _parser().error(f"unrecognized arguments: {' '.join(strange)}")
    # here, for they import torch: seconds
    import lightning_landscape.analysis.commands as commands
    from lightning_landscape.analysis.show import check_outputs, one_line

    try:
        files = {name: getattr(options, name, None) for name in ("html", "save", "figures")}
        check_outputs(**files)
        commands.RUN[options.verb](options, rest)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"lightning-landscape {options.verb}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-landscape",
        description="Loss landscapes of checkpoints: asymmetry, lines, planes, and runs compared.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    analyze = _measuring(verbs, "analyze", "asymmetry around the weights of a checkpoint", 1)
    analyze.add_argument("--toward", metavar="CKPT", help="a second checkpoint: draw a line to it")
    analyze.add_argument(
        "--families", nargs="+", default=list(_DEFAULT_FAMILIES), metavar="FAMILY",
        help="how random directions are sampled (default: %(default)s)",
    )  # fmt: skip
    analyze.add_argument("--n_directions", type=int, default=8, help="a family (default: 8)")
    analyze.add_argument(
        "--n_points", type=int, default=13, help="a direction, 4 k + 1 (default: 13)"
    )
    analyze.add_argument(
        "--radius", type=float, default=0.6, help="how far, relative to the weights (default: 0.6)"
    )
    analyze.add_argument(
        "--breakdown", action="store_true", help="also how much the gradient changes along itself"
    )
    _measuring(verbs, "line", "the loss on the line from checkpoints to the last of them", "+")
    plane = _measuring(verbs, "plane", "the loss on the plane through three checkpoints", 3)
    plane.add_argument("--n", type=int, default=25, help="points a side (default: 25)")
    plane.add_argument(
        "--rows", metavar="DIR", help="keep finished rows here, and go on from them after a stop"
    )
    _reading(verbs, "compare", "the last numbers of several runs, side by side", "+")
    _reading(verbs, "show", "what a run says, in words", 1)
    return parser


def _measuring(verbs: Any, name: str, help: str, n: int | str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=help, description=f"Measure {help}.")
    verb.add_argument("ckpt", nargs=n, metavar="CKPT", help="a checkpoint, or CKPT:swa")
    verb.add_argument("--config", help="the config.yaml of the fit (default: beside the first)")
    verb.add_argument("--model", metavar="CLASS", help="my.Module, where the config names no class")
    verb.add_argument("--data", metavar="CLASS", help="my.Data, where the config names no class")
    verb.add_argument(
        "--n_batches", type=int, default=8, help="of training and of validation data (default: 8)"
    )
    verb.add_argument(
        "--mode", choices=("train", "eval", "recalibrated"), default="train",
        help="how the network is run (default: train: batch statistics, dropout with one mask)",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="of the directions (default: 0)")
    verb.add_argument(
        "--unsafe", action="store_true", help="load more than tensors: only from files you trust"
    )
    verb.add_argument("--save", metavar="FILE", help="write all numbers to an .npz file")
    verb.add_argument("--figures", metavar="DIR", help="write figures as PNG files")
    verb.add_argument("--quiet", action="store_true", help="no progress and no cost")
    return _printing(verb)


def _reading(verbs: Any, name: str, help: str, n: str | int) -> None:
    verb = verbs.add_parser(name, help=help, description=f"Print {help}.")
    verb.add_argument("run", nargs=n, metavar="RUN", help="the folder of a run")
    _printing(verb)


def _printing(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument("--json", action="store_true", help="print all numbers as JSON")
    verb.add_argument("--html", metavar="FILE", help="write a page for the browser")
    return verb
