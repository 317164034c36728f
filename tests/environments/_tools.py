"""Tools that tests call in this process and in child processes, which find them in this file."""

import os
import random
import time
from collections.abc import Mapping
from typing import Any, Literal


def multiply(a: int, b: int = 2, how: Literal["exact", "rounded"] = "exact") -> int:
    """Multiply two whole numbers.

    Args:
        a: The first number.
        b: The second.
        how: What to do with the product.
    """
    return a * b if how == "exact" else round(a * b, -1)


def total(numbers: list[float], note: str | None = None) -> dict[str, Any]:
    """Add up numbers.

    Args:
        numbers: What to add.
        note: Comes back.
    """
    return {"total": sum(numbers), "note": note}


def misbehave(how: str, size: int = 0) -> Any:
    """Do what a tool should not.

    Args:
        how: What.
        size: How much of it.
    """
    if how == "raise":
        raise ValueError("no such thing")
    if how == "exit":
        raise SystemExit(3)
    if how == "die":
        os._exit(3)
    if how == "hang":
        time.sleep(1000)
    if how == "spin":
        while True:
            pass
    if how == "print":
        print("x" * size)
        return "printed"
    if how == "memory":
        return len(bytearray(size * 2**20))
    if how == "random":
        return random.random()
    return ("\ud800" if how == "half" else "y") * size


class Counter:
    """Counts from what the row says, apart in each episode."""

    closed = 0

    def reset(self, row: Mapping[str, Any], seed: int) -> str:
        self.number, self.seed = row["start"], seed
        return f"It begins at {self.number}."

    def add(self, number: int) -> int:
        """Add to the counter.

        Args:
            number: How much.
        """
        self.number += number
        return self.number

    def wait(self) -> None:
        """Wait for ever."""
        time.sleep(1000)

    def reward(self, row: Mapping[str, Any], text: str, messages: Any) -> float:
        return self.number + 100 * row["ended"] + len(messages) / 10

    def close(self) -> None:
        type(self).closed += 1

    def _private(self) -> None:
        """No tool."""


class Unloadable:
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no database")

    def look(self) -> str:
        """Look."""
        return ""
