"""Data for a tiny classification task in which the label follows from one word of the text."""

import json
import random

from helpers.tiny_runs import WORDS

LABELS = {"w0": "w10", "w1": "w11", "w2": "w12"}
"""Words that mark a text, and the label of each."""


def write_labeled(path, count, seed=0, labels=LABELS):
    """Write rows of each label in turn."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        mark = [*labels][index % len(labels)]
        words = [*draw.choices(WORDS[20:], k=draw.randint(2, 5)), mark, draw.choice(WORDS[20:])]
        rows.append({"text": " ".join(words), "label": labels[mark]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
