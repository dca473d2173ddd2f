# SPDX-License-Identifier: Apache-2.0
"""vllm-cold on vllm-ascend's own classes, on a CPU: `make ascend`; see ``__main__``."""
