# SPDX-License-Identifier: Apache-2.0
"""The contrast in vLLM: front end, scheduler and worker. What is for one kind of hardware alone is
in ``vllm_cold.cpu`` and ``vllm_cold.npu``, which are not known here.

``vllm_cold.places`` says what is hooked, why, and when it can go; ``availability`` what happens
where vLLM lacks it.
"""
