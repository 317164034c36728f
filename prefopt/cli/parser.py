"""The options of every verb."""

import argparse
from collections.abc import Callable

from prefopt.cli.benchmarking import benchmark
from prefopt.cli.fields_help import label_fields, run_fields, with_fields
from prefopt.cli.looking_up import cache, check, objectives, recipes, runs
from prefopt.cli.measuring import evaluate, export, label, push, report, sample
from prefopt.cli.training import run, study

Verb = Callable[[Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]
"""Adds a verb, which is a function, with its help."""

OF_A_RUN = "a recipe (its policy before training), a finished run folder, or a checkpoint in one"


def parser_of_verbs() -> argparse.ArgumentParser:
    """`prefopt VERB …`."""
    parser = argparse.ArgumentParser(
        prog="prefopt",
        description="Preference-optimization research: everything else equal, what does this objective do?",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(function: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(
            function.__name__, help=help, description=help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.set_defaults(verb=function)
        return parser

    _add_training(verb)
    _add_evaluating(verb)
    _add_measuring(verb)
    _add_handing_on(verb)
    _add_benchmark(verb)
    _add_looking_up(verb)
    return parser


def _add_training(verb: Verb) -> None:
    parser = verb(run, "train one recipe")
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a YAML file, or a name that `prefopt recipes` lists; with --resume, also a run folder",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example train.lr=1e-6 objective.beta=0.3"
    )
    parser.add_argument("--out", metavar="DIR", help="the run folder; must be new")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint of the unfinished run, or of a finished one with more train.steps",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that is on disk, print the resolved recipe, its batches, memory and downloads",
    )
    parser.add_argument("--profile", action="store_true", help="at the end, say where the time went")
    parser.format_help = with_fields(parser.format_help, run_fields)  # type: ignore[method-assign]
    parser = verb(study, "arms × seeds, resumable, then the report: the same command again does what is missing")
    parser.add_argument(
        "study", metavar="STUDY", help="a YAML file (docs/studies.md), or a name that `prefopt recipes` lists"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seeds=5 common.train.steps=40")
    parser.add_argument(
        "--on",
        choices=("local", "slurm", "ray"),
        default="local",
        help="where runs run: here, or on a cluster that shares the folder (docs/scale.md; default: local)",
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="runs at once (default: 1 here, as many as there is room for on a cluster)",
    )
    parser.add_argument("--out", metavar="DIR", help="the study's folder (default: runs/NAME)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print runs, differences between arms and the time needed",
    )
    parser.add_argument("--untimed", action="store_true", help="with --dry-run: load no model to estimate the time")
    looks = parser.add_mutually_exclusive_group()
    looks.add_argument(
        "--status", action="store_true", help="what is finished, running, waiting or failed, and time left"
    )
    looks.add_argument("--watch", action="store_true", help="the same, until nobody works on it any more")
    looks.add_argument(
        "--stop", action="store_true", help="runs that work save a checkpoint and end, and no other begins"
    )


def _add_evaluating(verb: Verb) -> None:
    parser = verb(evaluate, "measure a policy on held-out data, or a judge against people, with intervals")
    parser.add_argument("target", metavar="RECIPE|RUN", help=OF_A_RUN)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument("--out", metavar="FILE", help="also write every observation, as JSON")
    parser.add_argument(
        "--add",
        action="store_true",
        help="measure further evaluate.metrics.NAME, evaluate.sets.NAME or evaluate.gold of a finished run, or of all runs of a "
        "study, and keep it in their folders, where reports find it",
    )
    parser = verb(sample, "generate from a policy")
    parser.add_argument("target", metavar="RECIPE|RUN", help=OF_A_RUN)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as evaluate.sampling.temperature=0.7"
    )
    parser.add_argument("--prompt", action="append", help="your own; may be given again (default: held-out prompts)")
    parser.add_argument("--number", type=_positive, default=5, help="of held-out prompts (default: 5)")
    parser.add_argument("--completions", type=_positive, default=1, help="of each prompt (default: 1)")


def _add_measuring(verb: Verb) -> None:
    parser = verb(label, "score or judge completions, write a preference data set")
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file (docs/label.md)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example prompts=100 samples.completions=2"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="the folder; the same command again goes on where it was interrupted",
    )
    parser.format_help = with_fields(parser.format_help, label_fields)  # type: ignore[method-assign]
    parser = verb(report, "compare finished runs: a page, tables, methods and references for a paper, numbers")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="run folders, studies, or folders of run folders")
    _add_paper_table(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the files go (default: DIR where it is one, else report/)"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the arm that others are compared with (default: the first)")
    parser.add_argument(
        "--against",
        metavar="best|all|NAME",
        help="compare with the best arm, each with each, or with this arm (default: the baseline)",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="the one that decides, such as gold or gold_at_kl (default: gold)"
    )
    parser.add_argument(
        "--figures", action="store_true", help="also write figures/ for a paper: PDF, SVG, PNG, captions"
    )


def _add_handing_on(verb: Verb) -> None:
    parser = verb(
        export, "write a trained model as whole weights, adapters merged, for transformers alone (docs/models.md)"
    )
    parser.add_argument("target", metavar="RUN|FOLDER", help="a run or a checkpoint, or any model's folder or hub id")
    parser.add_argument("out", metavar="OUT", help="where to; a folder that is new or empty")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default: float32)",
    )
    parser.add_argument(
        "--gguf",
        choices=("f32", "bf16", "f16", "q8_0"),
        help="also write OUT/model-TYPE.gguf, by llama.cpp's converter (docs/models.md)",
    )
    parser = verb(push, "upload a finished run's policy, or an exported folder, to a model hub (docs/models.md)")
    parser.add_argument("target", metavar="RUN|FOLDER", help="a finished run, or a folder that export wrote")
    parser.add_argument("repo", metavar="OWNER/NAME", help="a repository that is new or empty")
    parser.add_argument("--private", action="store_true", help="nobody else sees it")


def _add_benchmark(verb: Verb) -> None:
    parser = verb(benchmark, "measure a reward model, judge or policy on published benchmarks (docs/benchmarks.md)")
    parser.add_argument(
        "target",
        metavar="RUN|MODEL|RECIPE",
        help="a run folder, with --add also a study's; a folder or hub id of a model; a recipe: its judge, feedback, or policy "
        "before training",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rows of RewardBench, RewardBench 2, RM-Bench or JudgeBench, or any pairs: JSONL, Parquet, CSV, a folder, a hub id",
    )
    parser.add_argument("--tasks", metavar="NAME,…", help="tasks of lm-evaluation-harness, for policies")
    parser.add_argument("--include", action="append", metavar="FOLDER", help="with further tasks; may be given again")
    parser.add_argument(
        "--fewshot", type=int, metavar="N", help="worked examples before each document (default: the task's)"
    )
    parser.add_argument(
        "--as", dest="kind", metavar="BENCHMARK", help="which benchmark (default: known by the columns)"
    )
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="the first so many rows, or documents of each task"
    )
    parser.add_argument(
        "--reward",
        choices=("logratio", "logp", "mean_logp", "norm_logp"),
        help="of a policy (default: logratio where its objective compares with a reference, else mean_logp)",
    )
    parser.add_argument("--reference", metavar="MODEL", help="of a policy (default: the run's)")
    parser.add_argument(
        "--prompts",
        choices=("text", "turns", "none"),
        help="as plain text, as a turn of the user, or answers alone (default: as the model was trained)",
    )
    parser.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="in a forward pass (default: 16)")
    parser.add_argument("--name", metavar="NAME", help="of the result (default: the file's, or the tasks')")
    parser.add_argument("--out", metavar="FILE", help="also write everything, as JSON")
    parser.add_argument(
        "--add", action="store_true", help="keep it in the folder of the run, or of all runs of a study"
    )


def _add_looking_up(verb: Verb) -> None:
    parser = verb(check, "run the contract on an objective, or reset and a step of an environment, yours or prefopt's")
    parser.add_argument(
        "objective", metavar="PATH:CLASS", help="file.py:Class, package.module:Class, or a name such as DPO or Tools"
    )
    parser.add_argument(
        "fields", nargs="*", metavar="field=value", help="hyperparameters; row.x=… of an environment's row"
    )
    parser = verb(objectives, "list the catalogue: name, paper, needs, defaults")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; file.py:Class for your own")
    parser = verb(recipes, "list the recipes and studies that come with prefopt, show one, or copy them all")
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one, such as pocket/dpo")
    parser.add_argument("--copy", metavar="FOLDER", help="copy all of them into a new folder")
    parser = verb(runs, "list the runs below a folder: how far each has come, and what it measured at the end")
    parser.add_argument("folder", nargs="?", metavar="DIR", default="runs", help="default: runs")
    parser = verb(
        cache, "list, verify or clear what is kept on disk between runs ($PREFOPT_CACHE, or ~/.cache/prefopt)"
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "verify", "clear"), default="list", help="verify reads every checksum"
    )
    parser.add_argument("kind", nargs="?", metavar="KIND", help="logps, embeddings or judges (default: all)")
    parser.add_argument("--yes", action="store_true", help="do delete")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _add_paper_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        choices=("interval", "sd", "sem"),
        default="interval",
        help="what stands behind ± in table.tex: half an interval, the standard deviation, the standard error (default: interval)",
    )
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        default="",
        help="the columns of table.tex (default: the metric that decides, and the usual few)",
    )
