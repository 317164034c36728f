"""references.bib: BibTeX of what a comparison used: papers of its objectives, models and data by name, libraries, prefopt."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.objectives import CATALOGUE
from prefopt.objectives.listing import arxiv_ids, entry
from prefopt.objectives.papers import PAPERS, Paper, cite_key
from prefopt.study.comparison.comparison import Comparison
from prefopt.study.report.tex import escaped


class Reference(NamedTuple):
    """An entry of references.bib: its key, its kind, and its fields as LaTeX."""

    key: str
    kind: str
    fields: Mapping[str, str]

    def bibtex(self) -> str:
        """As it stands in the file."""
        lines = [f"  {name} = {{{value}}}," for name, value in self.fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])


def _arxiv(paper: Paper) -> Reference:
    title = re.sub(r"(\S*[A-Z]\S*[A-Z]\S*|\S*\d\S*)", r"{\1}", escaped(paper.title))  # a style keeps these capitals
    fields = {"title": title, "author": escaped(paper.authors) if "{" not in paper.authors else paper.authors}
    return Reference(
        paper.key, "article", fields | {"year": str(paper.year), "journal": f"arXiv preprint arXiv:{paper.arxiv}"}
    )


def _entry(kind: str, key: str, title: str, author: str, year: int, **fields: str) -> Reference:
    return Reference(key, kind, {"title": title, "author": author, "year": str(year), **fields})


LORA = _arxiv(Paper("2106.09685", "LoRA: Low-Rank Adaptation of Large Language Models", "Hu, Edward J. and others"))
ADAMW = _arxiv(Paper("1711.05101", "Decoupled Weight Decay Regularization", "Loshchilov, Ilya and Hutter, Frank"))
HOLM = _entry(
    "article",
    "holm1979simple",
    "A simple sequentially rejective multiple test procedure",
    "Holm, Sture",
    1979,
    journal="Scandinavian Journal of Statistics",
    volume="6",
    number="2",
    pages="65--70",
)
EDWARDS_HSU = _entry(
    "article",
    "edwards1983multiple",
    "Multiple Comparisons with the Best Treatment",
    "Edwards, Don G. and Hsu, Jason C.",
    1983,
    journal="Journal of the American Statistical Association",
    volume="78",
    pages="965--971",
)
PREFOPT = _entry(
    "misc",
    "prefopt",
    "prefopt: controlled experiments in preference optimization",
    "{The prefopt developers}",
    2026,
)
"""As CITATION.cff has it, which a test compares."""
_EMNLP = "Proceedings of the {} Conference on Empirical Methods in Natural Language Processing: System Demonstrations"
LIBRARIES = {
    "torch": _entry(
        "inproceedings",
        "paszke2019pytorch",
        "{PyTorch}: An Imperative Style, High-Performance Deep Learning Library",
        "Paszke, Adam and others",
        2019,
        booktitle="Advances in Neural Information Processing Systems",
    ),
    "transformers": _entry(
        "inproceedings",
        "wolf2020transformers",
        "Transformers: State-of-the-Art Natural Language Processing",
        "Wolf, Thomas and others",
        2020,
        booktitle=_EMNLP.format(2020),
    ),
    "datasets": _entry(
        "inproceedings",
        "lhoest2021datasets",
        "Datasets: A Community Library for Natural Language Processing",
        "Lhoest, Quentin and others",
        2021,
        booktitle=_EMNLP.format(2021),
    ),
    "peft": _entry(
        "misc",
        "mangrulkar2022peft",
        "{PEFT}: State-of-the-art Parameter-Efficient Fine-Tuning methods",
        "Mangrulkar, Sourab and others",
        2022,
    ),
    "accelerate": _entry(
        "misc",
        "gugger2022accelerate",
        "Accelerate: Training and inference at scale made simple, efficient and adaptable",
        "Gugger, Sylvain and others",
        2022,
    ),
    "numpy": _entry(
        "article",
        "harris2020array",
        "Array programming with {NumPy}",
        "Harris, Charles R. and others",
        2020,
        journal="Nature",
        volume="585",
        pages="357--362",
    ),
    "scipy": _entry(
        "article",
        "virtanen2020scipy",
        "{SciPy} 1.0: fundamental algorithms for scientific computing in {Python}",
        "Virtanen, Pauli and others",
        2020,
        journal="Nature Methods",
        volume="17",
        pages="261--272",
    ),
}
"""Those of a manifest's versions that ask to be cited; their own CITATION files and papers say how."""


def of_objective(name: str) -> Reference | None:
    """The paper of an objective of the catalogue, or of one's own that names an arXiv id; None where it names none."""
    arxiv = entry(name).paper if name in CATALOGUE else _paper_in_file(name)
    if not arxiv:
        return None
    return _arxiv(PAPERS[arxiv]) if arxiv in PAPERS else _unknown(arxiv)


def _paper_in_file(name: str) -> str:
    """The first arXiv id in the docstring of `file.py:Class`, which is read and not run: a report may be of strangers' runs."""
    place, _, wanted = name.rpartition(":")
    if not place.endswith(".py"):
        return ""
    try:
        tree = ast.parse(Path(place).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # it has gone since, or is no Python
        return ""
    docs = (
        ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == wanted
    )
    return next(iter(arxiv_ids(next(docs, None) or "")), "")


def _unknown(arxiv: str) -> Reference:
    """A paper of which only the id is known; title and authors are for its reader to add."""
    return Reference(
        f"arxiv{arxiv}", "misc", {"title": f"arXiv:{arxiv}", "howpublished": f"arXiv preprint arXiv:{arxiv}"}
    )


def of_asset(name: str) -> Reference | None:
    """A model or data set of the hub, by its id; None for what is in files of one's own or part of prefopt."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        return None
    owner, _, title = name.partition("/")
    key = cite_key(owner, 0, title).replace("0", "", 1) + "hub"
    fields = {
        "title": escaped(title),
        "author": f"{{{escaped(owner)}}}",
        "howpublished": f"Hugging Face Hub, {escaped(name)}",
    }
    return Reference(re.sub(r"[^a-z0-9]", "", key), "misc", fields)


def references(comparison: Comparison) -> list[Reference]:
    """Everything that the methods paragraph may cite, each once, in the order of use."""
    found = [PREFOPT, HOLM, EDWARDS_HSU]
    for run in comparison.runs:
        found += _of_run(run.recipe, run.manifest)
    return list({reference.key: reference for reference in found}.values())


def _of_run(recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[Reference]:
    terms = recipe.get("objective") or []
    for term in terms if isinstance(terms, Sequence) else []:
        if isinstance(term, Mapping) and (paper := of_objective(str(term.get("name")))):
            yield paper
    for name in (
        *named(recipe, "policy", "model"),
        *named(recipe, "source", "data"),
        *named(recipe, "feedback", "model"),
    ):
        if asset := of_asset(name):
            yield asset
    if (recipe.get("policy") or {}).get("adapter"):
        yield LORA
    if (recipe.get("train") or {}).get("optimizer") in (
        "adamw",
        {"name": "adamw"},
    ):  # older recipes have its name alone
        yield ADAMW
    yield from (reference for name, reference in LIBRARIES.items() if (manifest.get("versions") or {}).get(name))


def named(recipe: Mapping[str, Any], section: str, key: str) -> list[str]:
    """Names at a key of a recipe, which may be one, a list, or mappings with `data`."""
    value = (recipe.get(section) or {}).get(key) if isinstance(recipe.get(section), Mapping) else None
    values = value if isinstance(value, list) else [value]
    return [name for one in values if isinstance(name := one.get("data") if isinstance(one, Mapping) else one, str)]


def to_bibtex(comparison: Comparison) -> str:
    """references.bib."""
    return "\n\n".join(reference.bibtex() for reference in references(comparison)) + "\n"
