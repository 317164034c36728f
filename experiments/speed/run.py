"""Speed against TRL, and cost against size: `python experiments/speed/run.py all`, or one of its parts, at any size.

    dpo       (a) DPO, reference cache cold and warm, against TRL at its best and by default
    grpo      (b) groups of K against TRL's GRPOTrainer, the same rule as reward
    study     (c) 5 objectives × seeds, in one process with everything shared, against a TRL run for each
    growth    (d) cost against length, K, vocabulary, model size and number of pairs
    figures   draws what results.csv has, and prints its medians

Sides alternate, each measurement is a process of its own, and each is a line of results.csv with the load of the machine beside it.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
CACHE = Path("/tmp") / f"prefopt-speed-{os.getpid()}"
COLUMNS = (
    "part",
    "side",
    "setting",
    "commit",
    "at",
    "load",
    "threads",
    "pairs",
    "import",
    "setup",
    "reference",
    "train",
    "reference_cpu",
    "cpu",
    "tokens",
    "before_mb",
    "peak_mb",
    "losses",
    "detail",
)
TIMES = ("import", "setup", "reference", "train", "reference_cpu", "cpu")
SEEDS = (0, 1, 2)
OBJECTIVES = {"DPO": "sigmoid", "IPO": "ipo", "Hinge": "hinge", "APOZero": "apo_zero", "RobustDPO": "robust"}
"""By prefopt's name, and by TRL's. The work of a run is the same for each; their losses are compared in tests/objectives."""


def measured(what: str, side: str, setting: str, part: str, options: argparse.Namespace, **spec: object) -> dict:
    """One measurement, in a process of its own; a line of results.csv."""
    given = {"what": what, "threads": options.threads, **spec}
    where = {"PREFOPT_CACHE": str(CACHE), "HF_DATASETS_CACHE": str(CACHE / "datasets"), "PYTHONWARNINGS": "ignore"}
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, str(HERE / "measure.py"), json.dumps(given)],
        env=os.environ | where | threads,
        capture_output=True,
        text=True,
        timeout=options.timeout,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{side} {setting}: {done.stderr[-3000:]}")
    found = json.loads(lines[-1].removeprefix("RESULT "))
    row = {
        "part": part,
        "side": side,
        "setting": setting,
        "commit": commit(),
        "at": time.strftime("%H:%M:%S"),
        "load": f"{load:.2f}",
        "threads": options.threads,
        "pairs": spec.get("pairs", ""),
        **{key: f"{found[key]:.3f}" for key in TIMES if key in found},
        "tokens": found.get("sampled") or found.get("tokens", ""),
        "before_mb": f"{found.get('before', 0):.0f}",
        "peak_mb": f"{found.get('peak', 0):.0f}",
        "losses": " ".join(f"{loss:.7f}" for loss in found.get("losses", ())),
        "detail": json.dumps(
            {k: found[k] for k in ("seconds", "padding", "sections", "flops", "median") if k in found}
        ),
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{key}={row.get(key, '')}" for key in COLUMNS[:17] if row.get(key, "") != ""), flush=True)
    return found


def commit() -> str:
    """Of the code that is measured; "+" where it has been changed since."""
    said = [
        subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", "*.py"))
    ]
    return said[0] + "+" * bool(said[1])


def dpo(options: argparse.Namespace) -> None:
    """(a) In turns: matmul peak, TRL at its best, prefopt cold, prefopt warm; TRL's defaults once."""
    batch = min(options.batch, options.pairs)
    work = {"pairs": options.pairs, "batch": batch, "steps": options.pairs // batch}
    for number in range(options.repeats):
        shutil.rmtree(CACHE, ignore_errors=True)
        measured("matmul", "machine", "matmul", "a", options)
        measured("trl_dpo", "trl", "best", "a", options, mode="best", **work)
        measured("prefopt_dpo", "prefopt", "cold", "a", options, **work)
        measured("prefopt_dpo", "prefopt", "warm", "a", options, **work)
        if number == 0 and not options.no_default:
            measured("trl_dpo", "trl", "default", "a", options, mode="default", **work)


def grpo(options: argparse.Namespace) -> None:
    """(b) In turns; as many sampled tokens on both sides, but for the few completions that end early."""
    work = {"batch": 4, "completions": options.completions, "new": 48, "steps": options.steps}
    for _ in range(options.repeats):
        shutil.rmtree(CACHE, ignore_errors=True)
        measured("trl_grpo", "trl", "best", "b", options, **work)
        measured("prefopt_grpo", "prefopt", "run", "b", options, **work)


def study(options: argparse.Namespace) -> None:
    """(c) Every objective and seed: `prefopt study`, a process a core; TRL's runs one after another, on all cores."""
    batch = min(options.batch, options.pairs)
    work = {"pairs": options.pairs, "batch": batch, "steps": options.steps}
    objectives = list(OBJECTIVES)[: options.objectives]
    seeds = list(SEEDS)[: options.seeds]
    shutil.rmtree(CACHE, ignore_errors=True)
    measured(
        "prefopt_study",
        "prefopt",
        "study",
        "c",
        options,
        objectives=objectives,
        seeds=seeds,
        jobs=options.threads,
        **work,
    )
    for name in objectives:
        for seed in seeds[: options.trl_seeds]:
            loss = OBJECTIVES[name]
            measured("trl_dpo", "trl", f"{name} {seed}", "c", options, mode="best", loss=loss, **work)


def growth(options: argparse.Namespace) -> None:
    """(d) One thing grows, all else stays; and 1k against 100k pairs."""
    work = {"pairs": 16, "batch": 8, "steps": 2, "cache": False, **({"size": options.size} if options.size else {})}
    ranked = {"objective": {"name": "PlackettLuceDPO"}}
    grown: dict[str, list[dict]] = {
        "length": [{"prompt": 2 * n, "completion": n} for n in (15, 30, 60, 120)],
        "K": [{"completions": k, **(ranked if k > 2 else {})} for k in (2, 4, 8)],
        "vocabulary": [{"vocabulary": v} for v in (2000, 8000, 32000, 128000)],
        "model": [{"size": size} for size in ("1M", "7M", "20M", "60M")],
    }
    for what, sizes in grown.items():
        for size in sizes if options.only in ("", what) else ():
            named = {key: value for key, value in size.items() if key != "objective"}
            measured("prefopt_dpo", "prefopt", f"{what} {json.dumps(named)}", "d", options, **{**work, **size})
    if options.only in ("", "pairs"):
        small = {"batch": 4, "steps": options.steps, "size": "1M", "prompt": 40, "completion": 20, "vocabulary": 2000}
        for _ in range(options.repeats):
            for pairs in (1000, options.many):
                measured("prefopt_dpo", "prefopt", f"pairs {pairs}", "d", options, pairs=pairs, **small)


def rows() -> Iterator[dict]:
    """Lines of results.csv."""
    with RESULTS.open(newline="") as opened:
        yield from csv.DictReader(opened)


def _spread(found: list[dict], name: str) -> str:
    """Median and range of a time."""
    times = [float(row[name]) for row in found if row[name]]
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" if times else "–"


def figures(options: argparse.Namespace) -> None:
    """Loss curves over each other, and medians."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in rows():
        key = ("commit", "part", "pairs", "threads", "side", "setting")
        groups.setdefault(tuple(row[name] for name in key), []).append(row)
    for key, found in groups.items():
        if found[0]["train"]:
            peaks = statistics.median(float(row["peak_mb"]) for row in found)
            shown = "  ".join(
                f"{name} {_spread(found, name)}" for name in ("train", "reference", "cpu", "reference_cpu")
            )
            print(" ".join(key).ljust(40), shown, f" peak {peaks:.0f} MB, {len(found)} times")
    picture, axes = plt.subplots(figsize=(5, 3))
    styles = {("trl", "best"): "o", ("prefopt", "cold"): "-", ("prefopt", "warm"): "--"}
    newest = list(rows())[-1]["commit"]
    for (code, part, pairs, threads, side, setting), found in groups.items():
        if code == newest and part == "a" and (side, setting) in styles and len(found[0]["losses"].split()) > 1:
            losses = list(map(float, found[0]["losses"].split()))
            style, label = styles[side, setting], f"{side} {setting}, {pairs} pairs, {threads} threads"
            axes.plot(range(1, len(losses) + 1), losses, style, label=label, fillstyle="none")
    axes.set(xlabel="step", ylabel="DPO loss")
    axes.legend(fontsize=6)
    picture.tight_layout()
    picture.savefig(HERE / "losses.svg")


def everything(options: argparse.Namespace) -> None:
    """All parts, then the figures."""
    for part in (dpo, grpo, study, growth, figures):
        part(options)


PARTS = {"dpo": dpo, "grpo": grpo, "study": study, "growth": growth, "figures": figures, "all": everything}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--many", type=int, default=100_000, help="pairs of the larger data set of (d)")
    parser.add_argument("--batch", type=int, default=64, help="pairs of a logical batch")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--objectives", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--trl-seeds", type=int, default=3, help="of (c), on TRL's side: its runs take as long with any seed"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--size", default="")
    parser.add_argument("--only", default="", help="of (d): length, K, vocabulary, model or pairs")
    parser.add_argument("--no-default", action="store_true", help="leave out TRL's defaults in (a)")
    parser.add_argument("--timeout", type=float, default=3600)
    options = parser.parse_args()
    try:
        PARTS[options.part](options)
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)


if __name__ == "__main__":
    main()
