"""results.json: a comparison for programs, whole, in numbers that any JSON reader can read; docs/results.md explains every key."""

import json
from collections.abc import Mapping
from typing import Any

from prefopt.study.comparison.comparison import Comparison, Row, Table
from prefopt.study.comparison.contrasts import Contrast
from prefopt.study.comparison.crossed import Crossed, prompts_measured
from prefopt.study.comparison.statistics import Difference, Mean
from prefopt.support.json_values import json_values

FORMAT = "prefopt comparison"
VERSION = 1
"""Counted up when a key changes its meaning or goes; a new key leaves it as it is."""


def to_json(comparison: Comparison) -> str:
    """results.json. What is not known is null; keys are always in the same order."""
    c = comparison
    content = {
        "format": FORMAT,
        "version": VERSION,
        "question": c.question,
        "verdict": c.verdict,
        "metric": c.metric,
        "better": c.better,
        "against": c.against,
        "baseline": c.baseline,
        "confidence": c.confidence,
        "paired": c.paired,
        "arms": list(c.arms),
        "seeds": sorted({run.seed for run in c.runs}),
        "metrics": {table.metric: _metric(c, table) for table in (c.primary, *c.others)},
        "wins": [{"arm": one, "other": other} | _mean(mean) for (one, other), mean in c.wins.items() if mean.seeds],
        "costs": c.costs,
        "runs": [
            {"arm": run.arm, "seed": run.seed, "state": run.state, "trouble": run.trouble}
            | {"before": run.before, "after": run.after, "costs": run.costs}
            for run in c.runs
        ],
        "confounds": list(c.confounds),
        "notes": list(c.notes),
    }
    return json.dumps(json_values(content), indent=1, allow_nan=False) + "\n"


def _metric(comparison: Comparison, table: Table) -> dict[str, Any]:
    prompts = prompts_measured(comparison.runs, table.metric)
    differences: list[Row | Contrast] = list(table.pairs or [row for row in table.rows if row.difference])
    return {
        "primary": table.metric == comparison.metric,
        "rows": comparison.rows_of(table.metric),
        "prompts": None if prompts is None else prompts[1],
        "arms": {row.arm: _arm(row) for row in table.rows},
        "differences": [_difference(one, getattr(one, "other", comparison.baseline)) for one in differences],
    }


def _arm(row: Row) -> dict[str, Any]:
    known = _mean(row.mean) | {"sd": row.mean.sd}
    return {
        "values": _by_seed(row.values),
        **known,
        "interquartile_mean": row.interquartile,
        "bootstrap_t": list(row.bootstrap),
    }


def _difference(one: Row | Contrast, other: str) -> dict[str, Any]:
    d, alone = one.difference, one.over_prompts
    assert d is not None
    return {
        "arm": one.arm,
        "other": other,
        "values": _by_seed(dict(zip(d.seeds, d.values, strict=False))),
        **_mean(d.mean),
        "sd": d.mean.sd,
        "simultaneous": [d.low, d.high],
        "other_prompts": None if one.crossed is None else _crossed(one.crossed),
        "one_seed_over_prompts": None
        if alone is None
        else {"interval": [alone.low, alone.high], "prompts": alone.prompts},
        "p": d.p,
        "p_holm": d.holm,
        "correlation": d.correlation,
        "seeds_needed": _needed(d),
        "kl": one.kl,
        "claim": one.claim,
    }


def _needed(difference: Difference) -> list[int] | None:
    return None if difference.needed is None else list(difference.needed)


def _crossed(crossed: Crossed) -> dict[str, Any]:
    return {
        "interval": [crossed.low, crossed.high],
        "simultaneous": list(crossed.both),
        "prompts": crossed.prompts,
        "variance_from_prompts": crossed.of_prompts,
    }


def _mean(mean: Mean) -> dict[str, Any]:
    return {"mean": mean.value, "interval": [mean.low, mean.high], "seeds": mean.seeds}


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}
