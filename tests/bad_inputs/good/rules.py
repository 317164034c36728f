"""A user's functions: feedback, an adapter of rows, and data."""


def brief(prompts, completions, rows):
    return [[-float(len(text)) for text in texts] for texts in completions]


def swapped(row):
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def pairs():
    for number in range(40):
        yield {"prompt": f"w{number} w{number + 1}", "chosen": f" w{number} w1", "rejected": " w2"}
