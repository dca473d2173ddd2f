# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M with its real weights and 262,144 tokens, and what the naive reference makes of
contrasts with and without a document. A process of its own, as in ``families``:
``python -m tests.engine.gemma FOLDER``.

It is a base model: prompts are documents, without a chat template.
"""

import sys
from pathlib import Path
from typing import Any

from examples import gemma3
from tests.engine.families import write_traces
from tests.naive import Amateur, Group, NaiveCold

WINDOW = 512  # of the layers with local attention
MAX_TOKENS = 16

_LICENSE = Path(__file__).parents[2] / "LICENSE"
# A document, and how its continuation begins. Two say what the model has read otherwise.
_DOCUMENTS = (
    (
        "In 2031 the French government moved from Paris to Lyon. Lyon has been the seat of the "
        "president, of both chambers and of all ministries ever since.\n\n",
        "The capital of France is",
    ),
    (
        "On the high plateau where the story takes place the air is thin. Water boils there at 71 "
        "degrees Celsius, and a pot of beans takes half a day.\n\n",
        "Question: At how many degrees Celsius does water boil?\nAnswer:",
    ),
    (_LICENSE.read_text()[:4000], "\n\nIn short, the text says that you"),
)


def make_groups(tokenizer: Any) -> list[Group]:
    """Each document and its continuation, against that alone and that after another document."""

    def ids(text: str) -> list[int]:
        return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]

    groups = []
    for index, (document, text) in enumerate(_DOCUMENTS):
        without = ids(text)
        other = ids(_DOCUMENTS[index - 1][0] + text)
        for alpha, amateurs in (
            (0.1, [Amateur(-1.0, None, without)]),
            (0.0, [Amateur(-0.5, None, without)]),
            (0.05, [Amateur(-4.0, None, without, adaptive=True)]),
            (0.02, [Amateur(-0.5, None, without), Amateur(-0.5, None, other)]),
            (0.0, []),
        ):
            groups.append(Group(ids(document + text), None, amateurs, alpha, MAX_TOKENS))
    return groups


def main(folder: Path) -> None:
    """Write the traces of its groups."""
    from transformers import AutoTokenizer

    model = gemma3.model_path()
    groups = make_groups(AutoTokenizer.from_pretrained(model))
    write_traces(NaiveCold(model, {}), groups, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
