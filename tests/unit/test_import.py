# SPDX-License-Identifier: Apache-2.0
"""The core imports no engine; the package itself imports nothing heavy at all; and a front end
whose engine was not asked for a contrast loads what tells who asks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PLAIN = [
    "vllm_cold",
    "vllm_cold.frontend.adapter_config",
    "vllm_cold.settings.table",
    "vllm_cold.wire.stream",
]
WITHOUT_VLLM = [
    "vllm_cold.scheduler.lockstep",
    "vllm_cold.ops",
    "vllm_cold.ops.scoring_torch",
    "vllm_cold.worker.group_rows",
]


@pytest.mark.parametrize(
    ("modules", "absent"), [(PLAIN, {"vllm", "torch", "numpy"}), (WITHOUT_VLLM, {"vllm"})]
)
def test_what_is_not_imported(modules: list[str], absent: set[str]) -> None:
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*{{name.partition('.')[0] for name in sys.modules}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(done.stdout.split())
    assert "vllm_cold" in loaded and not loaded & absent


# The front end's table, with the options that it names.
ROWS = ["compat.refused_options", "frontend.frontend_places"]
HOOKS = ["frontend.request_hooks"]
# Of the command line, whose help names what can be set.
OPTIONS = [
    "errors", "frontend", "frontend.cli", "rules", "rules.registry", "rules.rule", "settings",
    "settings.images", "settings.presets", "settings.table",
]  # fmt: skip
UNASKED = {
    "offline": {"pooling": sorted(["frontend", *ROWS, *HOOKS]), "engine": [], "request": []},
    "server": {
        "options": OPTIONS,
        "engine": sorted(["frontend.aliases", *ROWS, *HOOKS]),
        "request": [],
    },
}
UNASKED["changed"] = UNASKED["server"]
LACKS = "vllm-cold cannot be used in this engine: LoRA is off, and the engine was not asked for"
UNAVAILABLE = "Contrastive decoding is unavailable: this vLLM"
REFUSALS = {
    "offline": {
        "extra_args": f"400 {LACKS}",
        "ColdParams": f"400 {LACKS}",
        "beam search": "beam_search='ColdParams': vllm-cold does not support beam search; use gen",
    },
    "changed": {who: f"400 {UNAVAILABLE}" for who in ("vllm_xargs", "again")},
    "server": {
        "misplaced": "400 Cold_beta=1: belongs into vllm_xargs",
        "vllm_xargs": f"400 {LACKS}",
        "wrong": "400 cold_beta=-1: must be a number >= 0",
        "name": f"400 {LACKS}",
        "beam search": f"400 {LACKS}",
    },
}


@pytest.mark.parametrize("kind", UNASKED)
def test_a_front_end_that_was_not_asked(kind: str, tiny: Path) -> None:
    command = [sys.executable, "-m", "tests.unasked_front_end", kind, str(tiny / "model")]
    alone = os.environ | {"VLLM_PLUGINS": "cold"}  # without the kernels for CPUs
    done = subprocess.run(
        command, stdout=subprocess.PIPE, env=alone, text=True, timeout=240, check=True
    )
    loaded, refusals = json.loads(done.stdout.splitlines()[-1])
    assert "vllm_cold.compat.start_hooks" in loaded.pop("plugins")
    assert loaded == {
        stage: [f"vllm_cold.{name}" for name in names] for stage, names in UNASKED[kind].items()
    }
    assert refusals.keys() == REFUSALS[kind].keys()
    for who, sentence in REFUSALS[kind].items():
        assert refusals[who].startswith(sentence), who
