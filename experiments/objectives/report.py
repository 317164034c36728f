"""What the runs of run.py came to: `python experiments/objectives/report.py` writes results.csv, table.md and frontier.svg here."""

import csv
import json
import math
import statistics
from collections import defaultdict

import matplotlib
from run import HERE, RUNS
from scipy import stats

from prefopt.objectives import CATALOGUE

matplotlib.use("agg")
from matplotlib import pyplot as plt

FAMILIES = {
    "likelihood": ("SFT", "SLiC", "ORPO", "CPO", "DPONLL", "RRHF", "PRO"),
    "reference-free margin": ("SimPO", "AlphaPO"),
    "unpaired": ("KTO", "BCO", "AOTUnpaired", "RPOUnpaired", "NCA"),
    "lists": ("PlackettLuceDPO", "LiPO", "EXOList", "InfoNCA"),
    "RPO": ("RPO", "RPODiagonal", "RewardAwareRPO"),
}
COLOURS = dict(zip([*FAMILIES, "margin to the reference"], plt.get_cmap("tab10").colors, strict=False))


def finished() -> dict[str, list[dict]]:
    """The summaries of every objective's finished runs, by seed."""
    found: dict[str, list[dict]] = defaultdict(list)
    for file in sorted(RUNS.glob("*/summary.json")):
        name = file.parent.name.rpartition("-seed")[0]
        found[name].append(json.loads(file.read_text()) | {"seed": int(file.parent.name.rpartition("-seed")[2])})
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95% interval over seeds, Student's t."""
    if len(values) < 2:
        return values[0], math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error


def rows() -> list[dict]:
    """One for each objective, the highest gold reward first."""
    table = []
    found = finished()
    imitation = {run["seed"]: run["after"]["gold"]["value"] for run in found.get("sft", [])}
    for name, runs in found.items():
        row: dict = {"objective": label(name), "seeds": len(runs)}
        ahead = [r["after"]["gold"]["value"] - imitation[r["seed"]] for r in runs if r["seed"] in imitation]
        row["over_sft"], row["over_sft_half"] = interval(ahead) if ahead else (math.nan, math.nan)
        for metric in ("gold", "kl", "length", "accuracy", "logratio_chosen", "logratio_rejected"):
            row[metric], row[f"{metric}_half"] = interval([run["after"][metric]["value"] for run in runs])
        gains = [run["change"]["gold"]["value"] for run in runs]
        row["gain"], row["gain_half"] = interval(gains)
        row["raised"] = sum(run["change"]["gold"]["low"] > 0 for run in runs)
        table.append(row)
    return sorted(table, key=lambda row: -row["gold"])


def cell(row: dict, name: str) -> str:
    """A number with its half-width; counts are of seeds."""
    if name == "raised":
        return f"{row['raised']} of {row['seeds']}"
    places = 3 if name in ("gold", "gain", "over_sft", "accuracy") else 2
    return f"{row[name]:.{places}f} ±{row[f'{name}_half']:.{places}f}"


def label(name: str) -> str:
    """The class name of a recipe's file name."""
    return next((known for known in CATALOGUE if known.lower() == name), name)


def main() -> None:
    """Table and figure."""
    table = rows()
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in table)
    columns = ("gold", "gain", "raised", "over_sft", "kl", "length", "accuracy", "logratio_chosen", "logratio_rejected")
    lines = [
        "| objective | gold reward after | gain | seeds that gain | more than SFT | KL | length | accuracy "
        "| log-ratio chosen | rejected |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {row['objective']} | {' | '.join(cell(row, name) for name in columns)} |" for row in table]
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    figure()


LOWEST = -0.4
"""Of the axis; what lies below is named at its foot."""


def figure() -> None:
    """Gold reward against KL, a point for each seed; a name at the mean of each objective's."""
    with plt.rc_context({"font.size": 8, "svg.hashsalt": "prefopt", "svg.fonttype": "none"}):
        drawing, axis = plt.subplots(figsize=(11, 7), layout="constrained")
        named, below = [], []
        for name, runs in finished().items():
            objective = label(name)
            family = next((f for f, members in FAMILIES.items() if objective in members), "margin to the reference")
            points = [(run["after"]["kl"]["value"], run["after"]["gold"]["value"]) for run in runs]
            xs, ys = zip(*points, strict=True)
            axis.scatter(xs, ys, s=14, color=COLOURS[family], alpha=0.6)
            x, y = statistics.fmean(xs), statistics.fmean(ys)
            if y < LOWEST:
                below.append(f"{objective} {y:.2f} (KL {x:.1f})")
            else:
                named.append((x, y, objective, COLOURS[family]))
        for place, (x, y, objective, colour) in enumerate(sorted(named)):
            height = (14, -20, 26, -32)[place % 4]  # neighbours get out of each other's way
            axis.annotate(
                *(objective, (x, y), (0, height)),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=colour,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4},
            )
        for family, colour in COLOURS.items():
            axis.scatter([], [], s=14, color=colour, label=family)
        start = [run["before"]["gold"]["value"] for runs in finished().values() for run in runs]
        axis.scatter([0], [statistics.fmean(start)], marker="s", color="black", s=20, label="the LM they start from")
        axis.text(0.01, 0.01, f"below: {'; '.join(below)}", transform=axis.transAxes)
        axis.set_xscale("symlog", linthresh=0.5)
        axis.set_ylim(LOWEST, None)
        axis.set_xlabel("KL to the start, nats a completion (own samples; log scale above 0.5)")
        axis.set_ylabel("held-out gold reward")
        axis.grid(alpha=0.2)
        axis.legend(loc="upper left", frameon=False)
        drawing.savefig(HERE / "frontier.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
