"""Text as LaTeX shows it: names of arms and metrics, which anybody may have written."""

from prefopt.support.terminal import one_line

GREEK = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau"},
    **{"φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Δ": "Delta", "Λ": "Lambda", "Σ": "Sigma", "Φ": "Phi"},
}
SPECIAL = (
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {c: f"$\\{name}$" for c, name in GREEK.items()}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", '"': "''", "–": "--", "—": "---", "−": "$-$", "±": r"$\pm$"}
    | {"×": r"$\times$", "·": r"$\cdot$", "→": r"$\to$", "≤": r"$\leq$", "≥": r"$\geq$", "²": "$^2$", "…": r"\ldots{}"}
)


JOINS = "_/=-.:, "
"""What joins the words of a name."""


def escaped(text: str) -> str:
    """The text in one line, which no character of it can leave. Letters of other scripts take a font that has them."""
    return "".join(SPECIAL.get(c, c) for c in one_line(text))


def breakable(name: str) -> str:
    """A name that may be broken after what joins its words, and within words that are longer than a narrow column."""
    text, word = "", 0
    for c in one_line(name):
        word = word + 1 if c not in JOINS else 0
        text += SPECIAL.get(c, c) + (r"\allowbreak{}" if c in JOINS else r"\-" if word % 8 == 0 else "")
    return text
