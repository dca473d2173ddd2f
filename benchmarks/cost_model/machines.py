# SPDX-License-Identifier: Apache-2.0
"""Models and accelerators, and where each number comes from.

Peaks are data sheets'. What is reached of them is from what others have published, read in public
and not checked by us. "Fitted" names the figure that a constant was chosen to give.
"""

from __future__ import annotations

from benchmarks.cost_model.model import GIB, Machine, Shape

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("SmolLM2-135M", 576, 30, 9, 3, 64, 1536, 49152, tied=True),
        Shape("Llama-3.2-1B, untied", 2048, 16, 32, 8, 64, 8192, 128256),
        Shape("Llama-2-7B", 4096, 32, 32, 32, 128, 11008, 32000),
        Shape("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18944, 152064, qkv_bias=True),
        Shape("Llama-3-8B", 4096, 32, 32, 8, 128, 14336, 128256),
        Shape("Qwen3-32B", 5120, 64, 64, 8, 128, 25600, 151936),
        Shape("Llama-2-70B", 8192, 80, 64, 8, 128, 28672, 32000),
        Shape("Llama-3-70B", 8192, 80, 64, 8, 128, 28672, 128256),
    )
}

# Punica adds 2 ms to a token (abstract of arXiv 2310.18547); taken as a 7B model's, of 32 layers.
_LORA = 2e-3 / 32
# Keeping the streams of a request in step, as measured on a CPU (benchmarks/measured). With
# asynchronous scheduling a GPU may not see it.
PAIR = 0.4e-3
# vLLM's own kernel for small sums, as measured on H100s in sglang's pull request 2904 (512 bytes
# and 1 MiB, 2 to 8 devices, without graphs); vLLM takes others for large ones.
_SMALL = (10e-6, 60e9)


def _half(rate: float) -> dict[str, float]:
    """Operations per second; float32 weights are not what these are used for."""
    return {"bfloat16": rate, "float16": rate}


H100 = Machine(
    "H100 SXM 80 GB",
    bandwidth=0.82 * 3.35e12,
    rates=_half(794.5e12),
    layer=60e-6,
    lora=_LORA,
    pair=PAIR,
    memory=79 * GIB,
    links={n: (_SMALL, (28e-6, 370e9)) for n in (2, 4, 8)},
    sources=(
        "3.35 TB/s, of which 0.82 as on the A100; 794.5 of 989 TFLOP/s: the matrix products of "
        "stas00/ml-engineering; a layer's 60 us: fitted, 7.38 ms a token of Llama 3 8B in vLLM's "
        "pull request 11000; LoRA: Punica's abstract; sums: sglang's pull request 2904, and "
        "370 GB/s (NVIDIA/nccl-tests, issue 212) behind NCCL's 28 us (NVIDIA/nccl, issue 1334)"
    ),
)
A100 = Machine(
    "A100 SXM 80 GB",
    bandwidth=0.82 * 2.039e12,
    rates=_half(271.2e12),
    layer=45e-6,
    lora=_LORA,
    pair=PAIR,
    memory=79 * GIB,
    links={n: (_SMALL, (28e-6, 195e9)) for n in (2, 4, 8)},
    sources=(
        "2.039 TB/s, of which 0.82, and a layer's 45 us: fitted, gpt-fast's Llama 2 7B and 70B on "
        "two devices; 271.2 of 312 TFLOP/s: stas00/ml-engineering; LoRA and small sums as on the "
        "H100; large sums 0.65 of 300 GB/s: calculon's a100_80g.json"
    ),
)
ASCEND = Machine(
    "Ascend 910B 64 GB",
    bandwidth=0.80 * 1.6e12,
    rates=_half(328e12),
    layer=280e-6,
    lora=535e-6,
    pair=PAIR,
    memory=61 * GIB,
    links={n: ((25e-6, 9e9 * n),) for n in (2, 4, 8)},
    sources=(
        "1.6 TB/s assumed, as in the kernels' design, of which 0.80: element-wise operations of "
        "the repository limulidae, and so 328 TFLOP/s and 9 GB/s to each other device; 25 us a "
        "sum: assumed; a layer's 280 us and LoRA's 535 us: fitted, 52.5 and 29.4 tokens/s of "
        "Qwen2.5 7B in vllm-ascend's issue 3930, with vllm-ascend's LoRA kernels"
    ),
    drafts=False,
)
MACHINES = {"h100": H100, "a100": A100, "ascend": ASCEND}
