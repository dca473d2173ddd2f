# SPDX-License-Identifier: Apache-2.0
"""vLLM's V2 model runner on a CPU: every test of engines and servers with ``--runner v2``.

V2's kernels are written in Triton, which has no back end for CPUs. It has an interpreter, which
runs a kernel in Python, program by program. ``stub`` is what else is needed: a distribution on
the path that declares a Triton back end named "cpu", so that vLLM takes Triton for usable, and that
makes the interpreter run what the compiler takes (``interpreter.py``). Nothing is installed, and no
file of vLLM's or Triton's is changed.

What it stands in for: a GPU's driver and Triton's compiler. vLLM's CPU worker has stand-ins of its
own for streams, events, pinned and shared memory. All else is what GPU users run: the runner, its
sampler, the logits processor with real ``LogitsContext`` objects, our Triton kernels.

What it cannot show: that kernels compile (``tests/ops/test_triton.py`` compiles ours) and how fast
they are; races between programs, which run one after the other, and between streams, of which
there is one; CUDA graphs; half precision as a GPU rounds it; vLLM's LoRA and attention for GPUs.
"""

import os
import sys
from pathlib import Path

STUB = Path(__file__).parent / "stub"


def switch_on() -> None:
    """V2 for this process and those that it starts; before Triton and vLLM are imported."""
    imported = sorted({"triton", "vllm"} & sys.modules.keys())
    if imported:
        raise RuntimeError(f"{' and '.join(imported)} imported before the runner was chosen")
    sys.path.insert(0, str(STUB))
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(STUB), os.environ.get("PYTHONPATH")))),
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "COLD_SCORING": "triton",  # the best one for CPUs is in C++
    }
