# SPDX-License-Identifier: Apache-2.0
"""Write ``sorting.jsonl``: held-out problems of the sorting task, for lm-evaluation-harness.

``python -m examples.lm_eval.make_sorting``. The problems come from fixed seeds: the file is the
same wherever it is written.
"""

import json
from pathlib import Path

from examples.tasks import SORTING

PROBLEMS = 40
FILE = Path(__file__).with_name("sorting.jsonl")


def lines() -> str:
    """Return the file's text: one JSON object a line, with ``prompt`` and ``answer``."""
    problems = SORTING.prompts("test", PROBLEMS)
    return "".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in problems)


if __name__ == "__main__":
    FILE.write_text(lines())
    print(FILE)
