"""The methods paragraphs and their references: only what runs recorded, what differs by arm, and that LaTeX takes them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from _folders import finished_run, study

from prefopt.objectives import CATALOGUE
from prefopt.objectives.listing import entries
from prefopt.objectives.papers import PAPERS
from prefopt.runs.records import RunRecord
from prefopt.study.comparison.compare import compare
from prefopt.study.comparison.confounds import together
from prefopt.study.report import methods, paper_table
from prefopt.study.report.references import PREFOPT, of_asset, of_objective, references, to_bibtex

ARMS = {"dpo": [0.0, 0.1, 0.2, 0.1], "rpo": [1.0, 1.12, 1.21, 1.09]}
FULL = {
    "policy": {"model": "Qwen/Qwen3-0.6B", "adapter": {"rank": 8}},
    "source": {"data": "trl-lib/ultrafeedback_binarized", "max_prompt_tokens": 32, "rollouts": None},
    "train": {
        "steps": 4,
        "batch_size": 8,
        "lr": 0.001,
        "optimizer": {"name": "adamw"},
        "betas": [0.9, 0.95],
        "schedule": {"name": "linear"},
    },
    "evaluate": {"part": "test", "prompts": 3, "completions": 1, "sampling": {"temperature": 1.0, "max_tokens": 48}},
}


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("adamw", "AdamW [@loshchilov2017decoupled], learning rate 0.001"),
        ({"name": "adamw"}, "AdamW [@loshchilov2017decoupled], learning rate 0.001"),
        ({"name": "muon", "momentum": 0.9}, "muon (momentum = 0.9), learning rate 0.001"),
    ],
)
def test_an_optimiser_is_named_as_any_recipe_has_it(optimizer, said):
    recipe = {"train": {"optimizer": optimizer, "lr": 0.001, "schedule": {"name": "linear"}, "warmup": 0.1}}
    run = RunRecord("a", 0, Path("run"), "finished", recipe=recipe)
    assert methods._optimiser(run) == said
    assert methods._schedule(run) == "linear, warmup 0.1"


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"r": 8, "alpha": 16.0}, "LoRA [@hu2021lora] (r = 8, alpha = 16.0)"),
        ({"method": "IA3", "targets": "x"}, "IA3 (targets = x)"),
        ({"method": "VERA"}, "VERA"),
        (None, ""),
    ],
)
def test_an_adapter_is_named_by_its_method(adapter, said):
    assert methods._adapter(RunRecord("a", 0, Path("run"), "finished", recipe={"policy": {"adapter": adapter}})) == said


def full_study(folder: Path) -> Path:
    """Two arms whose recipes say all that real ones do; one has other batches, and a seed of it failed."""
    for arm, golds in ARMS.items():
        for seed, gold in enumerate(golds):
            train = FULL["train"] | ({"batch_size": 16} if arm == "rpo" else {})
            objective = [{"name": arm.upper(), "beta": 0.1}]
            finished_run(
                folder / "arms" / arm / f"seed-{seed}",
                seed,
                gold,
                recipe=FULL | {"train": train, "objective": objective},
            )
            file = folder / "arms" / arm / f"seed-{seed}" / "manifest.json"
            manifest = json.loads(file.read_text()) | {
                "objectives": objective,
                "started": f"2026-11-2{seed}T10:00:00+00:00",
            }
            manifest["data"] |= {"test": {"rows": 5, "fingerprint": "abcdef0123456789"}}
            file.write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compare([full_study(tmp_path_factory.mktemp("full"))])


def test_it_says_what_the_runs_recorded(found):
    text = methods.markdown(found)
    for said in (
        "We compare dpo and rpo with prefopt [@prefopt], with 4 seeds (0, 1, 2, 3), 8 runs in all.",
        "dpo: DPO [@rafailov2023direct] with beta = 0.1.",
        "rpo: RPO [@yin2024relative] with beta = 0.1.",
        "The policy starts from Qwen/Qwen3-0.6B [@qwenqwen3hub] (10 parameters, weights f00d).",
        "Data: trl-lib/ultrafeedback_binarized [@trllibultrafeedbackbinarizedhub].",
        "Rows: 12 for train, 5 for test.",
        "Fingerprint of the rows that are evaluated: abcdef012345.",
        "A batch has 8 rows (dpo); 16 rows (rpo).",
        "Optimiser: AdamW [@loshchilov2017decoupled], learning rate 0.001, betas 0.9, 0.95.",
        "Training takes 4 steps.",
        "It is measured on test rows and 3 prompts.",
        "Samples: 1 for each prompt, temperature 1.0, max tokens 48.",
        "Intervals are 95% intervals over seeds (differences paired by seed, Student's t)",
        "The runs began from 2026-11-20 to 2026-11-23.",
        "torch [@paszke2019pytorch] 2",
        "Hardware: cpu, x86_64, 1 thread.",
    ):
        assert said in text, said


def test_what_seeds_differ_in_is_told_as_it_is(tmp_path):
    """Each seed has its own split of the data, so its own number of prompts, and its own start of the adapter of one base."""
    made = study(tmp_path, ARMS)
    for file in made.glob("arms/*/seed-0/evaluations/*.json"):
        content = json.loads(file.read_text())
        content["observations"]["gold"]["groups"] = ["a", "b", "b"]
        file.write_text(json.dumps(content))
    for seed, file in enumerate(sorted(made.glob("arms/*/*/manifest.json"))):
        manifest = json.loads(file.read_text())
        manifest["model"] |= {"name": "base", "fingerprint": f"f{seed}", "base": "cafe"}
        manifest["data"]["train"] |= {"rows": 12, "trained_on": 9}
        file.write_text(json.dumps(manifest))
    found = compare([made])
    text = methods.markdown(found)
    assert "It is measured on test rows and 2 to 3 prompts." in text
    assert "weights cafe" in text and " or " not in text
    assert "Rows: 9 of 12 for train" in text
    assert "on test rows, 2 to 3 prompts;" in paper_table.latex(found)


def test_what_no_run_recorded_is_not_said(tmp_path):
    """Of bare run folders: no model, no optimiser, no costs, and no empty sentence."""
    made = study(tmp_path, ARMS)
    for file in made.glob("arms/*/*/manifest.json"):
        file.write_text("{}")
    text = methods.markdown(compare([made]))
    assert not re.search(
        r"None|nan|null|: \.|\(\)|  |from \.|AdamW|Hardware|Versions|Costs|Fingerprint|Samples: 1", text
    ), text
    assert "DPO [@rafailov2023direct] with beta = 0.1" in text and "learning rate 0.001" in text


def test_it_says_how_arms_are_compared(found, tmp_path):
    assert "We compare each arm and dpo: 1 comparison on gold." in methods.markdown(found)
    made = study(tmp_path, ARMS | {"c": [0.5, 0.6, 0.7, None]})
    text = methods.markdown(compare([made], against="all"))
    assert "We compare all pairs of arms: 3 comparisons on gold." in text and "Holm's [@holm1979simple]" in text
    assert "1 of the runs is failed." in text
    assert (
        "the best of the others, by one-sided intervals that hold together [@edwards1983multiple]"
        in methods.markdown(compare([made], against="best"))
    )


def test_every_citation_has_its_entry_and_every_entry_its_key_once(found):
    bib = to_bibtex(found)
    keys = re.findall(r"^@\w+\{(.*),$", bib, re.MULTILINE)
    assert len(keys) == len(set(keys))
    cited = set(re.findall(r"@(\w+)", methods.markdown(found)))
    assert cited <= set(keys)
    tex = methods.latex(found)
    assert set(re.findall(r"\\cite\{(\w+)\}", tex)) == cited and "[@" not in tex


def test_every_objective_of_the_catalogue_has_its_paper():
    """Title, authors and an id whose year is the entry's; no two papers share a key."""
    for e in entries():
        reference = of_objective(e.name)
        assert reference is not None and reference.fields["journal"] == f"arXiv preprint arXiv:{e.paper}", e.name
        assert reference.fields["author"] and reference.fields["title"]
    assert len({paper.key for paper in PAPERS.values()}) == len(PAPERS)
    assert {e.paper for e in entries()} == set(PAPERS) and len(entries()) == len(CATALOGUE)


def test_an_objective_of_ones_own_has_what_its_docstring_says(tmp_path):
    file = tmp_path / "own.py"
    body = "from prefopt.objectives.preference.dpo import DPO\nclass Own(DPO):\n    '''Mine, arXiv 2611.01234.'''\n"
    file.write_text(body + "class Bare(DPO):\n    '''Mine.'''\n")
    mine = of_objective(f"{file}:Own")
    assert mine is not None and mine.fields == {
        "title": "arXiv:2611.01234",
        "howpublished": "arXiv preprint arXiv:2611.01234",
    }
    assert of_objective(f"{file}:Bare") is None and of_objective(f"{tmp_path}/gone.py:Gone") is None


def test_only_names_of_the_hub_are_cited():
    assert of_asset("Qwen/Qwen3-0.6B") is not None
    for local in ("/data/runs/x", "prefopt.testbeds.pocket:preferences", "./a/b", "data.jsonl", "a/b/c"):
        assert of_asset(local) is None, local


def test_prefopt_is_cited_as_citation_cff_has_it():
    cff = yaml.safe_load((Path(__file__).parents[3] / "CITATION.cff").read_text(encoding="utf-8"))
    assert PREFOPT.fields["title"] == cff["title"] and PREFOPT.fields["year"] == str(cff["date-released"])[:4]
    assert PREFOPT.fields["author"] == "{" + cff["authors"][0]["name"] + "}"


def test_what_is_said_of_several_arms_is_one_sentence():
    sentences = [
        "a: its train rows are not those of c",
        "b: its train rows are not those of c",
        "b: x is 1, and 2 in c",
        "alone",
    ]
    assert together(sentences) == [
        "a and b: their train rows are not those of c",
        "b: x is 1, and 2 in c",
        "alone",
    ]


def test_a_name_that_looks_like_a_citation_is_text(tmp_path):
    for arm, golds in (("a [@evil] \\input{x}", ARMS["dpo"]), ("b", ARMS["rpo"])):
        for seed, gold in enumerate(golds):
            finished_run(tmp_path / f"{arm[0]}{seed}", seed, gold, recipe={"name": arm, "seed": seed})
    tex = methods.latex(compare([tmp_path]))
    assert "[@evil]" in tex and r"\cite{evil}" not in tex and not re.search(r"(?<!\\)\\input", tex)


PAPER = r"""\documentclass[twocolumn]{article}
\usepackage[margin=0.75in]{geometry}
\usepackage{booktabs,graphicx,array}
\begin{document}
\section{Experiments}
\input{methods}
\input{table}
\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


@pytest.mark.skipif(not (shutil.which("pdflatex") and shutil.which("bibtex")), reason="no LaTeX")
def test_a_paper_of_them_compiles_with_every_citation(found, tmp_path):
    texts = {
        "methods.tex": methods.latex(found),
        "table.tex": paper_table.latex(found),
        "references.bib": to_bibtex(found),
    }
    for name, text in (texts | {"paper.tex": PAPER}).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for line in (latex, ["bibtex", "paper"], latex, latex):
        made = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert made.returncode == 0, made.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "undefined" not in log and "error" not in (tmp_path / "paper.blg").read_text().lower()
    assert len(references(found)) >= 10


@pytest.mark.skipif(not (shutil.which("pdflatex") and shutil.which("bibtex")), reason="no LaTeX")
def test_bibtex_takes_every_paper_of_the_catalogue(tmp_path):
    entries_of_all = [reference for e in entries() if (reference := of_objective(e.name))]
    (tmp_path / "references.bib").write_text(
        "\n\n".join({r.key: r.bibtex() for r in entries_of_all}.values()), encoding="utf-8"
    )
    (tmp_path / "paper.tex").write_text(PAPER.replace(r"\input{methods}", r"\nocite{*}").replace(r"\input{table}", ""))
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    for line in (latex, ["bibtex", "paper"], latex):
        made = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert made.returncode == 0, made.stdout[-2000:]
    assert "Warning--" not in (tmp_path / "paper.blg").read_text()
