# SPDX-License-Identifier: Apache-2.0
"""Everything that touches vLLM, one file for each place, on three floors.

They are front end, scheduler and worker. LoRA on CPU has its own house, ``vllm_cold.cpu``.

Each file's docstring says what it touches, why, since when, and when it can go; docs/reference has
them in one table. ``contracts`` checks each of these places and names what broke when vLLM changes.
``plugin`` is where vLLM comes in; ``places`` lists what is wrapped, ``patching`` wraps it, and
``availability`` says what happens where that cannot be done.
"""
