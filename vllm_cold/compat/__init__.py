# SPDX-License-Identifier: Apache-2.0
"""What keeps vllm-cold in step with vLLM, in every process: what is hooked in it (``places``), how
(``patching``), and what happens where vLLM lacks it (``availability``).
"""
