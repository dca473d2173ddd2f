# SPDX-License-Identifier: Apache-2.0
"""Everything that touches vLLM, one file for each place, on three floors.

They are front end, scheduler and worker. LoRA on CPU has its own house, ``vllm_cold.cpu``.

Each file's docstring says what it touches, why, and when it can go. ``plugin`` is where vLLM comes
in; ``places`` lists what is wrapped, ``patching`` wraps it, ``contracts`` lists what is relied on
beside it, and ``availability`` says what happens where vLLM has not got it.
"""
