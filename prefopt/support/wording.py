"""How numbers and lists are written for people: one way, so that a number looks the same in every table, sentence and figure."""

import math
from collections.abc import Sequence


def number(value: float, signed: bool = False) -> str:
    """Three significant figures and every digit before the point, as in `0.00375`, `12.3` and `1234`; a real minus sign.

    Below .001 and from 100,000 on there is an exponent. NaN, which stands for what is not known, is –.
    """
    if math.isnan(value):
        return "–"
    sign = "+" if signed else ""
    if math.isinf(value):
        return f"{value:{sign}}".replace("inf", "∞").replace("-", "−")
    return _figures(value + 0.0, sign).replace("-", "−")


def _figures(value: float, sign: str) -> str:
    size = abs(float(f"{value:.2e}"))  # rounded first: 0.09996 is 0.100, and not 0.1000
    if size and not 1e-3 <= size < 1e5:
        return f"{value:{sign}.2e}"
    places = max(0, 2 - math.floor(math.log10(size))) if size else 0
    return f"{value:{sign}.{places}f}"


def interval(low: float, high: float) -> str:
    """[low, high], where one end may be infinite; – where there is no interval."""
    unknown = math.isnan(low) or math.isnan(high) or (math.isinf(low) and math.isinf(high))
    return "–" if unknown else f"[{number(low)}, {number(high)}]"


def amount(value: float) -> str:
    """Of something that is counted: every digit, as in `74,593`; a number with an exponent from a billion on."""
    return f"{value:,.0f}" if value < 1e9 else number(value)


def counted(count: int, what: str) -> str:
    """`2 prompts cut at the end`, `1 prompt cut at the end`: a number, and a phrase that begins with a plural."""
    first, *rest = what.split(" ", 1)
    return " ".join([f"{count:,}", first.removesuffix("s") if count == 1 else first, *rest])


def left(kept: int, given: int) -> str:
    """`14 of 20`; `40 from 20` where each gave several; the number alone where they are as many."""
    return f"{kept:,}" if kept == given else f"{kept:,} {'of' if kept < given else 'from'} {given:,}"


def span(fewest: int, most: int) -> str:
    """`18 to 21`, or one number."""
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
