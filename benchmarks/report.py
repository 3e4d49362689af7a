"""Run the benchmarks, compare their ratios with those stored, and write the table of the docs.

python benchmarks/report.py                   # a minute; says what regressed, exits with 0
python benchmarks/report.py --fail            # ... exits with 1 if something did
python benchmarks/report.py --full --store    # everything, kept in ratios.json
python benchmarks/report.py --table docs/benchmarks.md  # no run: writes between the markers
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from conftest import ENVIRONMENT

HERE = Path(__file__).parent
STORED = HERE / "ratios.json"
TOLERATED = 1.15
RATIOS = ("x", "forwards", "parameters")  # times depend on the machine, ratios little

Numbers = dict[str, dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all rounds, peers and trainings")
    parser.add_argument("--store", action="store_true", help="keep what is measured")
    parser.add_argument("--fail", action="store_true", help="exit with 1 if a ratio regressed")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table, measure not")
    parser.add_argument("-k", metavar="EXPRESSION", help="only some, as pytest selects them")
    args = parser.parse_args()
    stored: dict[str, Any] = json.loads(STORED.read_text()) if STORED.exists() else {}
    if args.table:
        write_table(args.table, stored["numbers"], stored["machine"])
        return 0
    numbers = measure(full=args.full, only=args.k)
    regressed = list(regressions(numbers, stored.get("numbers", {})))
    show(numbers, stored.get("numbers", {}))
    if args.store:
        kept = {**stored.get("numbers", {}), **numbers}
        content = {"machine": machine(), "numbers": kept}
        STORED.write_text(json.dumps(content, indent=1) + "\n")
    if not stored:
        print("Nothing is stored to compare with: python benchmarks/report.py --full --store")
    print(f"{len(regressed)} of {len(numbers)} are more than {TOLERATED - 1:.0%} above the stored.")
    for name, now, before in regressed:
        print(f"REGRESSED {name}: {now:.3f}, stored {before:.3f} ({now / before - 1:+.0%})")
    return 1 if args.fail and regressed else 0


def measure(*, full: bool, only: str | None) -> Numbers:
    """Run the benchmarks in a process of their own, whose environment is set before it starts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            ".",
            "--benchmark-only",
            "-p",
            "no:cacheprovider",
        ]
        command += ["--ignore=bench_fromage.py", f"--benchmark-json={path}"]
        command += ["--benchmark-timer=time.process_time", "--benchmark-columns=min,median,rounds"]
        command += [] if full else ["--quick"]
        command += ["-k", only] if only else []
        checkout = os.environ.get("PYTHONPATH") or str(HERE.parent)  # the one to be measured
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": checkout}
        subprocess.run(command, cwd=HERE, env=environment, check=True)
        found: Numbers = {}
        content = json.loads(path.read_text(), parse_float=lambda digits: round(float(digits), 4))
        for benchmark in content["benchmarks"]:
            found |= benchmark["extra_info"].get("numbers", {})
    return found


def regressions(numbers: Numbers, stored: Numbers) -> list[tuple[str, float, float]]:
    """Return the ratios that grew too much, with what they are and were.

    Example:
        >>> was, now = ({"a": {"unit": "x", "value": value}} for value in (1.0, 1.2))
        >>> regressions(now, was), regressions(was, now)
        ([('a', 1.2, 1.0)], [])
    """
    pairs = ((name, row, stored[name]) for name, row in numbers.items() if name in stored)
    return [
        (name, row["value"], before["value"])
        for name, row, before in pairs
        if row["unit"] in RATIOS and row["value"] > TOLERATED * before["value"]
    ]


def show(numbers: Numbers, stored: Numbers) -> None:
    """Print every number, what it must stay below and what it was."""
    print(f"\n{'':44}{'now':>9}{'limit':>9}{'stored':>9}")
    for name, row in numbers.items():
        limit = row["limit"]
        over = "  OVER" if limit is not None and row["value"] > limit else ""
        shown = (row["value"], limit, stored.get(name, {}).get("value"))
        columns = "".join(" " * 9 if value is None else f"{value:9.3f}" for value in shown)
        print(f"{name:44}{columns} {row['unit']}{over}")


def machine() -> str:
    """Return what the numbers were measured on."""
    import torch

    return f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}"


def write_table(readme: Path, numbers: Numbers, where: str) -> None:
    """Put the table between the markers of a page."""
    text = readme.read_text()
    marked = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise SystemExit(f"{readme} has no <!-- benchmarks --> followed by <!-- end -->.")
    lines = table(numbers, where)
    readme.write_text(marked.sub(lambda m: f"{m[1]}{lines}{m[2]}", text, count=1))


def table(numbers: Numbers, where: str) -> str:
    """Return the table as Markdown."""
    from networks import NETWORKS

    rows = [
        ("slices, beside the barest loop that moves the weights", "eval/beside moving", ""),
        ("slices through `probing`", "eval/slices", ""),
        ("the same in train mode", "train/slices", ""),
        ("all of it: opening, learning, drawing, slices, closing", "eval/all", ""),
        ("loss-landscapes 3.0.6", "eval/loss-landscapes", ""),
        ("landscaper 1.3.1", "eval/landscaper", ""),
        ("opening and closing `probing`", "eval/open and close", " passes"),
        ("learning what evaluations write", "eval/learn", " passes"),
        ("drawing a direction", "eval/draw", " passes"),
        ("a breakdown / its gradients", "train/breakdown", ""),
        ("an update of `SWA` / of `AveragedModel`", "swa update", ""),
    ]
    lines = ["| | " + " | ".join(network.title for network in NETWORKS.values()) + " |"]
    lines.append("|---" * (1 + len(NETWORKS)) + "|")
    for title, key, unit in rows:
        cells = (_cell(numbers.get(f"{name}/{key}"), unit) for name in NETWORKS)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    peak, ready = numbers["memory/slices"]["value"], numbers["import"]["value"]
    note = (
        f"CPU time of 10 directions x 21 points on a batch of 256, in units of 210 bare forward "
        f"passes; medians ({where}). Slices hold {peak:.1f} times the parameters at most; "
        f"`import lightning_landscape` takes {ready:.2f} s more than lightning and matplotlib."
    )
    return "\n".join([*lines, "", note, ""])


def _cell(row: dict[str, Any] | None, unit: str) -> str:
    if row is None:
        return ""
    return f"{row['value']:.1f}{unit}" if unit else f"{row['value']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
