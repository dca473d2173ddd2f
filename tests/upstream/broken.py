# SPDX-License-Identifier: Apache-2.0
"""Which rows of the table of places the vLLM that is installed has broken, as JSON on the last
line: ``python -m tests.upstream.broken``.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from vllm_cold.compat import places, versions


@dataclass(frozen=True)
class Row:
    """A row that no longer holds.

    Attributes:
        file: Of ours.
        when: It is needed.
        problems: What is wrong, a sentence for each place.
        why: It is there.
        lost: What is lost without it; "" if contrasts are refused then.
    """

    file: str
    when: str
    problems: tuple[str, ...]
    why: str
    lost: str

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Row":
        return cls(**row | {"problems": tuple(row["problems"])})


def broken() -> list[Row]:
    """All of them on this platform."""
    found = []
    for hook in (*places.rows(), *places.rows(*places.KERNELS_ON_CPU)):
        if versions.is_before(hook.since):
            continue
        if problems := tuple(filter(None, (place.problem() for place in hook.places))):
            found.append(Row(hook.file, hook.when.text, problems, hook.why, hook.lost))
    return found


if __name__ == "__main__":
    print(json.dumps([asdict(row) for row in broken()]))
