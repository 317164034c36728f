"""results.csv: a line for each measurement; and what its lines come to, as a table for README.md."""

import csv
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
COLUMNS = (
    *("part", "side", "setting", "commit", "at", "load", "threads", "pairs", "import", "setup", "reference", "train"),
    *("reference_cpu", "cpu", "tokens", "before_mb", "peak_mb", "losses", "detail"),
    *("data", "weights", "precision", "busy", "repeat", "setup_cpu"),
)
"""busy: whether a neighbour was made to compute; repeat: what measurements of one turn share, empty where they are in order."""

TIMES = ("import", "setup", "reference", "train", "reference_cpu", "cpu", "setup_cpu")
ALIKE = ("part", "data", "weights", "pairs", "threads", "busy", "precision", "commit")
"""Columns in which measurements agree that are compared."""

COMPARED = {
    ("a", "cold"): True,
    ("a", "warm"): False,
    ("b", "run"): False,
    ("e", "cold"): True,
    ("e", "warm"): False,
    ("f", "run"): False,
    ("g", "run"): False,
}
"""prefopt's setting in each part, beside TRL's best, and whether TRL's time for the reference counts."""

DETAILS = ("seconds", "padding", "sections", "flops", "median")
SIDES = "TRL, s | prefopt, s | ratio | TRL, processor s | prefopt | ratio"
HEADER = f"| | threads | neighbour | arithmetic | {SIDES} | peaks | losses apart |"
Line = dict[str, str]


def commit() -> str:
    """Of the code that is measured; "+" where it has been changed since."""
    said = [
        subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--", "*.py"))
    ]
    return said[0] + "+" * bool(said[1])


def line_of(found: Mapping, spec: Mapping, named: Mapping[str, object]) -> Line:
    """A measurement as a line; `named` are columns that it does not know itself."""
    values: dict[str, object] = {
        **named,
        "commit": commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        **{key: spec.get(key, "") for key in ("threads", "pairs", "data", "weights", "precision")},
        **{key: f"{found[key]:.3f}" for key in TIMES if key in found},
        "tokens": found.get("sampled") or found.get("tokens", ""),
        "before_mb": f"{found.get('before', 0):.0f}",
        "peak_mb": f"{found.get('peak', 0):.0f}",
        "losses": " ".join(f"{loss:.7f}" for loss in found.get("losses", ())),
        "detail": json.dumps({key: found[key] for key in DETAILS if key in found}),
    }
    return {key: str(values.get(key, "")) for key in COLUMNS}


def append(line: Line, file: Path = RESULTS) -> None:
    """Add a line to the file, and show it."""
    new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(line)
    print(" ".join(f"{key}={line[key]}" for key in COLUMNS if line[key] and key != "detail"), flush=True)


def lines(file: Path = RESULTS) -> Iterator[Line]:
    """Lines of the file, oldest first."""
    with file.open(newline="") as opened:
        yield from csv.DictReader(opened)


def seconds(line: Line, clock: str, reference: bool = False) -> float:
    """Of training, by the clock "train" or "cpu"; with the reference's where that counts, which prefopt's training has in it."""
    more = {"train": "reference", "cpu": "reference_cpu"}[clock]
    return float(line[clock]) + (float(line[more] or 0) if reference else 0)


def turns(found: list[Line], setting: str) -> list[tuple[Line, Line]]:
    """TRL's and prefopt's measurements that were taken in one turn; those of old, which do not name it, in their order."""
    sides: dict[str, dict[str, list[Line]]] = {"trl": {}, "prefopt": {}}
    for line in found:
        if (line["side"], line["setting"]) in (("trl", "best"), ("prefopt", setting)):
            sides[line["side"]].setdefault(line["repeat"], []).append(line)
    both = sides["trl"].keys() & sides["prefopt"].keys()
    return [pair for key in sorted(both) for pair in zip(sides["trl"][key], sides["prefopt"][key], strict=False)]


def apart(one: Line, other: Line) -> float:
    """Largest difference of the losses of two measurements."""
    both = zip(one["losses"].split(), other["losses"].split(), strict=True)
    return max(abs(float(a) - float(b)) for a, b in both)


def spread(values: list[float]) -> str:
    """Median and range."""
    middle = statistics.median(values)
    return f"{middle:.3g} ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else f"{middle:.3g}"


def compared(key: tuple[str, ...], setting: str, pairs: list[tuple[Line, Line]]) -> str:
    """A row of the table: both sides, and their ratios turn by turn."""
    named = dict(zip(ALIKE, key, strict=True))
    reference = COMPARED[named["part"], setting]
    cells = [f"({named['part']}) {named['data']}, {named['weights']}, {named['pairs']} rows, {setting}"]
    cells += [named["threads"], "busy" if named["busy"] == "yes" else "quiet", named["precision"]]
    for clock in ("train", "cpu"):
        theirs = [seconds(trl, clock, reference) for trl, _ in pairs]
        ours = [seconds(own, clock) for _, own in pairs]
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        cells += [spread(theirs), spread(ours), f"**{statistics.median(ratios):.2f}** ({each})"]
    peaks = [(float(trl["peak_mb"]), float(own["peak_mb"])) for trl, own in pairs]
    cells.append(", ".join(f"{statistics.median(side):,.0f}" for side in zip(*peaks, strict=True)) + " MB, ")
    cells[-1] += f"{statistics.median(own / trl for trl, own in peaks):.2f}"
    if named["part"] in ("b", "f"):
        cells.append("; ".join(f"{float(trl['tokens']):.0f}, {float(own['tokens']):.0f} tokens" for trl, own in pairs))
    else:
        cells.append(f"{max(apart(*pair) for pair in pairs):.1e}")
    return "| " + " | ".join(cells) + " |"


def studies(key: tuple[str, ...], found: list[Line]) -> Iterator[str]:
    """Rows of the table for studies: prefopt's whole, and TRL's runs, one for an objective, times the seeds."""
    named = dict(zip(ALIKE, key, strict=True))
    where = f"{named['threads']} | {'busy' if named['busy'] == 'yes' else 'quiet'} | {named['precision']}"
    for own in (line for line in found if line["side"] == "prefopt"):
        theirs: dict[str, list[Line]] = {}
        for line in found:
            if line["side"] == "trl" and line["repeat"] == own["repeat"]:
                theirs.setdefault(line["setting"].split()[0], []).append(line)
        runs = len(own["losses"].split())
        if not theirs or runs % len(theirs):
            continue
        cells = [f"({named['part']}) {named['data']}, {named['weights']}, {named['pairs']} rows, {runs} runs", where]
        for clock, setup in (("train", "setup"), ("cpu", "setup_cpu")):
            each = [
                statistics.mean(
                    float(line[clock]) + float(line[setup] or line["reference_cpu"] or 0) for line in of_one
                )
                for of_one in theirs.values()
            ]
            total = sum(each) * runs / len(theirs)
            one = float(own[clock])
            cells += [
                f"{total:.0f} ({len(each)} measured, times {runs // len(theirs)})",
                f"{one:.0f}",
                f"**{total / one:.2f}**",
            ]
        peak = max(float(line["peak_mb"]) for of_one in theirs.values() for line in of_one)
        cells.append(f"{peak:,.0f}, {float(own['peak_mb']):,.0f} MB, {float(own['peak_mb']) / peak:.2f}")
        yield "| " + " | ".join([*cells, ""]) + " |"


def table(code: str = "", file: Path = RESULTS) -> Iterator[str]:
    """What was measured of a commit, the newest unless told, in Markdown."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    every = list(lines(file))
    for line in every:
        if line["commit"] == (code or every[-1]["commit"]):
            groups.setdefault(tuple(line[name] for name in ALIKE), []).append(line)
    yield HEADER
    yield "|" + "---|" * HEADER.count("| ")
    for key, found in groups.items():
        if key[0] in ("c", "c2"):
            yield from studies(key, found)
        for part, setting in COMPARED:
            if part == key[0] and (pairs := turns(found, setting)):
                yield compared(key, setting, pairs)
    for line in every:
        if line["part"] == "d" and line["commit"] == (code or every[-1]["commit"]):
            cost = 1e6 * float(line["train"]) / float(line["tokens"])
            yield f"(d) {line['setting']}, {line['threads']} threads: {cost:.1f} µs a token, {line['peak_mb']} MB"


def draw(file: Path = RESULTS) -> None:
    """Loss curves of the newest commit's (a) over each other, where the file has any."""
    every = [line for line in lines(file) if line["part"] == "a" and len(line["losses"].split()) > 1]
    if not every:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(figsize=(5, 3))
    styles = {("trl", "best"): "o", ("prefopt", "cold"): "-", ("prefopt", "warm"): "--"}
    drawn = set()
    for line in (line for line in every if line["commit"] == every[-1]["commit"]):
        style = styles.get((line["side"], line["setting"]))
        label = f"{line['side']} {line['setting']}, {line['pairs']} pairs, {line['threads']} threads"
        if style and label not in drawn:
            losses = list(map(float, line["losses"].split()))
            axes.plot(range(1, len(losses) + 1), losses, style, label=label, fillstyle="none")
            drawn.add(label)
    axes.set(xlabel="step", ylabel="DPO loss")
    axes.legend(fontsize=6)
    picture.tight_layout()
    picture.savefig(HERE / "losses.svg")
