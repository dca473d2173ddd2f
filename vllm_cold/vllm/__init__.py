# SPDX-License-Identifier: Apache-2.0
"""Everything that touches vLLM, one file for each patch point, in three folders.

They are front end, scheduler and worker. What is for one kind of hardware
alone is in ``vllm_cold.cpu`` and ``vllm_cold.npu``.

Each file's docstring says what it touches, why, and when it can go. ``plugin`` is where vLLM comes
in; ``patch_points`` lists what is wrapped, ``patching`` wraps it, ``contracts`` lists what is
relied on beside it, and ``availability`` says what happens where vLLM has not got it.
"""
