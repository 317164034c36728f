"""Speed against TRL, and cost against size: `python experiments/speed/run.py all`, or one of its parts, at any size.

    dpo       (a) DPO, reference cache cold and warm, against TRL at its best and by default
    grpo      (b) groups of K against TRL's GRPOTrainer, the same rule as reward
    study     (c) 5 objectives × seeds, in one process with everything shared, against a TRL run for each
    growth    (d) cost against length, K, vocabulary, model size and number of pairs
    figures   draws what results.csv has, and prints a table of it

and on SmolLM2-135M, with what people preferred (--assets; recipes/movies/README.md says how to make them):

    pairs     (e) DPO, LoRA and all weights, on chat pairs with long answers and on short pairs of film snippets
    groups    (f) GRPO on what people asked an assistant for
    rankings  (g) a reward model from rankings of 4 to 9 film snippets, against pairs made of them
    arms      (c2) the study of (c) with LoRA

Sides alternate, each measurement is a process of its own, and each is a line of results.csv with the load of the machine beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import results

HERE = Path(__file__).parent
SCRATCH = Path("/tmp") / f"prefopt-speed-{os.getpid()}"
CACHE = SCRATCH / "cache"
BEGAN = time.strftime("%m%d-%H%M%S")
SEEDS = (0, 1, 2)
OBJECTIVES = {"DPO": "sigmoid", "IPOMean": "ipo", "Hinge": "hinge", "APOZero": "apo_zero", "RobustDPO": "robust"}
"""By prefopt's name, and by TRL's. The work of a run is the same for each; their losses are compared in tests/objectives."""

MICRO = {"words": 8, "chat": 1, "films": 4, "rankings": 4, "requests": 8}
"""TRL's micro-batches, in pairs and of requests in completions: for the first three the fastest; --micro tries others."""

RATES = {"lora": 1e-4, "full": 1e-5}
"""Learning rates on the real model."""

NEIGHBOUR = """
import os
parent = os.getppid()
os.sched_setaffinity(0, {core})
while os.getppid() == parent:
    sum(range(1000000))
"""


@contextmanager
def neighbour(wanted: bool) -> Iterator[subprocess.Popen | None]:
    """With a process that computes all the time on the last core, and ends with this context or with this process."""
    if not wanted:
        yield None
        return
    code = NEIGHBOUR.format(core={max(os.sched_getaffinity(0))})
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            yield process
        finally:
            process.kill()


def measured(what: str, setting: str, part: str, options: argparse.Namespace, repeat: int = 0, **spec: object) -> None:
    """One measurement, in a process of its own; a line of results.csv. The side is what `what` begins with."""
    side = what.partition("_")[0] if "_" in what else "machine"
    if side not in (*options.sides, "machine"):
        return
    given = {"what": what, "threads": options.threads, "precision": options.precision, **spec}
    given |= {"profile": options.profile, "attention": options.attention}
    load = os.getloadavg()[0]
    with neighbour(options.busy):
        found = in_process(given, f"{side} {setting}", options)
    named = {"part": part, "side": side, "setting": setting, "load": f"{load:.2f}", "repeat": f"{BEGAN}.{repeat}"}
    results.append(results.line_of(found, given, named | {"busy": "yes" if options.busy else "no"}), options.results)


def in_process(given: dict, name: str, options: argparse.Namespace) -> dict:
    """What measure.py says of a specification."""
    where = {"PREFOPT_CACHE": str(CACHE), "HF_DATASETS_CACHE": str(CACHE / "datasets"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, str(HERE / "measure.py"), json.dumps(given)],
        env=os.environ | where | {"OMP_NUM_THREADS": str(options.threads)},
        capture_output=True,
        text=True,
        timeout=options.timeout,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not said:
        killed = " (killed: by lack of memory? A smaller --micro takes less)" if done.returncode < 0 else ""
        raise SystemExit(f"{name} ended with {done.returncode}{killed}: {done.stderr[-3000:]}")
    found: dict = json.loads(said[-1].removeprefix("RESULT "))
    return found


def words(options: argparse.Namespace, pairs: int = 128) -> dict:
    """The work on the small Llama."""
    pairs = options.pairs or pairs
    batch = min(options.batch or 64, pairs)
    return {"data": "words", "weights": "full", "pairs": pairs, "batch": batch, "steps": pairs // batch}


def real(options: argparse.Namespace, data: str, weights: str, pairs: int, batch: int) -> dict:
    """The work on SmolLM2, with as many pairs and batches unless the command line says otherwise."""
    pairs = options.pairs or pairs
    batch = min(options.batch or batch, pairs)
    work = {"data": data, "weights": weights, "pairs": pairs, "batch": batch, "steps": pairs // batch}
    return work | {"assets": options.assets, "lr": RATES[weights], "tokens": options.micro_tokens}


def of_trl(options: argparse.Namespace, data: str) -> dict:
    """TRL's micro-batch, where one is known to be best, or told."""
    micro = options.micro or MICRO.get(data)
    return {"micro": micro} if micro else {}


def started(options: argparse.Namespace, work: dict) -> dict:
    """The file of the weights that both sides start from, where some are random."""
    if "trl" not in options.sides or (work["weights"] == "full" and work["data"] != "rankings"):
        return {}
    file = SCRATCH / f"{work['data']}-{work['weights']}.safetensors"
    if not file.exists():
        SCRATCH.mkdir(exist_ok=True)
        in_process({**work, "what": "start", "threads": options.threads, "start": str(file)}, "start", options)
    return {"start": str(file)}


def dpo(options: argparse.Namespace) -> None:
    """(a) In turns: matmul peak, TRL at its best, prefopt cold, prefopt warm; TRL's defaults once."""
    work = words(options)
    for number in range(options.repeats):
        shutil.rmtree(CACHE, ignore_errors=True)
        measured("matmul", "matmul", "a", options, number)
        compare_dpo(options, "a", work, number)
        if number == 0 and not options.no_default:
            measured("trl_dpo", "default", "a", options, number, mode="default", **work)


def compare_dpo(options: argparse.Namespace, part: str, work: dict, number: int) -> None:
    """DPO by TRL at its best, by prefopt without its caches, and by prefopt with the reference that it has kept."""
    shutil.rmtree(CACHE, ignore_errors=True)
    theirs = of_trl(options, work["data"]) | started(options, work)
    measured("trl_dpo", "best", part, options, number, mode="best", **work, **theirs)
    shutil.rmtree(CACHE, ignore_errors=True)
    measured("prefopt_dpo", "cold", part, options, number, **work)
    measured("prefopt_dpo", "warm", part, options, number, **work)


def grpo(options: argparse.Namespace) -> None:
    """(b) In turns; as many sampled tokens on both sides, but for the few completions that end early."""
    work = {"data": "words", "weights": "full", "pairs": 64, "batch": 4, "new": 48, "lr": 1e-5}
    compare_groups(options, "b", work | {"completions": options.completions, "steps": options.steps})


def compare_groups(options: argparse.Namespace, part: str, work: dict) -> None:
    """GRPO by TRL at its best and by prefopt."""
    for number in range(options.repeats):
        shutil.rmtree(CACHE, ignore_errors=True)
        measured(
            "trl_grpo", "best", part, options, number, **work, **({"micro": options.micro} if options.micro else {})
        )
        measured("prefopt_grpo", "run", part, options, number, **work)


def study(options: argparse.Namespace) -> None:
    """(c) Every objective and seed: `prefopt study`, a process a core; TRL's runs one after another, on all cores."""
    compare_studies(options, "c", words(options) | {"steps": options.steps})


def compare_studies(options: argparse.Namespace, part: str, work: dict) -> None:
    """A study by prefopt, and a run of TRL's for every objective and as many seeds as told."""
    objectives = list(OBJECTIVES)[: options.objectives]
    seeds = list(SEEDS)[: options.seeds]
    for number in range(options.repeats):
        shutil.rmtree(CACHE, ignore_errors=True)
        arms = {"objectives": objectives, "seeds": seeds, "jobs": options.jobs or options.threads}
        measured("prefopt_study", "study", part, options, number, **work, **arms)
        theirs = of_trl(options, work["data"]) | started(options, work)
        for name in objectives:
            for seed in seeds[: options.trl_seeds]:
                loss = {"mode": "best", "loss": OBJECTIVES[name]}
                measured("trl_dpo", f"{name} {seed}", part, options, number, **loss, **work, **theirs)


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
            measured("prefopt_dpo", f"{what} {json.dumps(named)}", "d", options, **{**work, **size})
    if options.only in ("", "pairs"):
        small = {"batch": 4, "steps": options.steps, "size": "1M", "prompt": 40, "completion": 20, "vocabulary": 2000}
        for number in range(options.repeats):
            for pairs in (1000, options.many):
                measured("prefopt_dpo", f"pairs {pairs}", "d", options, number, pairs=pairs, **small)


def pairs(options: argparse.Namespace) -> None:
    """(e) In turns: TRL at its best, prefopt cold, prefopt warm, on each data set and with each choice of weights."""
    sizes = {"chat": (16, 8), "films": (64, 16)}
    for number in range(options.repeats):
        for data in options.data or sizes:
            for weights in options.weights or RATES:
                compare_dpo(options, "e", real(options, data, weights, *sizes[data]), number)


def groups(options: argparse.Namespace) -> None:
    """(f) In turns, 64 tokens at most for a completion."""
    for weights in options.weights or ["lora"]:
        work = real(options, "requests", weights, 4 * options.steps, 4) | {"lr": RATES[weights] / 10, "new": 64}
        more = {
            "completions": options.completions,
            "steps": options.steps,
            "pairs": max(work["pairs"], 4 * options.steps),
        }
        compare_groups(options, "f", work | more)


def rankings(options: argparse.Namespace) -> None:
    """(g) In turns: TRL on all pairs of the rankings, prefopt on the rankings."""
    for number in range(options.repeats):
        for weights in options.weights or ["lora"]:
            work = real(options, "rankings", weights, 12, 6)
            theirs = of_trl(options, "rankings") | started(options, work)
            measured("trl_reward", "best", "g", options, number, **work, **theirs)
            measured("prefopt_reward", "run", "g", options, number, **work)


def arms(options: argparse.Namespace) -> None:
    """(c2) Every objective and seed with LoRA on SmolLM2."""
    data = (options.data or ["films"])[0]
    compare_studies(options, "c2", real(options, data, "lora", *{"chat": (8, 4), "films": (64, 16)}[data]))


def figures(options: argparse.Namespace) -> None:
    """A table of what was measured of a commit, and loss curves over each other."""
    print("\n".join(results.table(options.commit, options.results)))
    results.draw(options.results)


def everything(options: argparse.Namespace) -> None:
    """All parts on the small model, then the figures."""
    for part in (dpo, grpo, study, growth, figures):
        part(options)


PARTS = {part.__name__: part for part in (dpo, grpo, study, growth, pairs, groups, rankings, arms, figures)}
PARTS["all"] = everything


def command_line() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--pairs", type=int, help="rows; by default 128, or on the real model what takes TRL some minutes"
    )
    parser.add_argument("--many", type=int, default=100_000, help="pairs of the larger data set of (d)")
    parser.add_argument("--batch", type=int, help="rows of a logical batch")
    parser.add_argument("--steps", type=int, default=4, help="of (b), (c), (d) and (f)")
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--objectives", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--trl-seeds", type=int, default=1, help="of studies, on TRL's side: its runs take as long with any seed"
    )
    parser.add_argument("--jobs", type=int, help="processes of studies; by default as many as threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--busy", action="store_true", help="beside a process that computes all the time on one core")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of both sides")
    parser.add_argument(
        "--attention", choices=("sdpa", "eager"), help="of both sides; by default transformers' own choice"
    )
    parser.add_argument("--sides", nargs="+", choices=("trl", "prefopt"), default=("trl", "prefopt"))
    parser.add_argument("--assets", default="~/.cache/prefopt-assets", help="model and data of (e), (f), (g) and (c2)")
    parser.add_argument("--data", nargs="+", choices=("chat", "films"), help="of (e) and (c2)")
    parser.add_argument("--weights", nargs="+", choices=("lora", "full"), help="that are trained in (e), (f) and (g)")
    parser.add_argument("--micro", type=int, help="TRL's micro-batch, in pairs or completions")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="prefopt's, on the real model")
    parser.add_argument("--size", default="", help="of the small model, in (d)")
    parser.add_argument("--only", default="", help="of (d): length, K, vocabulary, model or pairs")
    parser.add_argument("--no-default", action="store_true", help="leave out TRL's defaults in (a)")
    parser.add_argument("--profile", action="store_true", help="prefopt's seconds by section, in the column detail")
    parser.add_argument("--commit", default="", help="of figures: which was measured; by default the last one")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="file of the lines")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a measurement")
    return parser.parse_args()


def main() -> None:
    """Run a part."""
    options = command_line()
    try:
        PARTS[options.part](options)
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)


if __name__ == "__main__":
    main()
