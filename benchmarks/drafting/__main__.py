# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.drafting``: decode what is not decoded yet, play the drafters, write."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

from tqdm import tqdm

from benchmarks.accuracy.prompts.problem import ModelName
from benchmarks.drafting import decode, report
from benchmarks.drafting.record import Record, load
from benchmarks.drafting.tasks import WORKLOADS


def main() -> None:
    """Run all."""
    # Engines in processes of their own, so that one's memory is free for the next.
    for what in (*get_args(ModelName), "score"):
        subprocess.run([sys.executable, "-m", decode.__name__, what], check=True)
    small: dict[str, list[Record]] = {}
    for workload in tqdm(WORKLOADS, desc="playing"):
        records = load(workload.name)
        assert records is not None
        report.write(report.measure(workload, records))
        if workload.model == "smollm2":
            small[workload.name] = records
    page = report.tables(report.read(), report.mixed(small))
    (report.HERE / "tables.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
