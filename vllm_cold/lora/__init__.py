# SPDX-License-Identifier: Apache-2.0
"""Multi-LoRA arithmetic. Imports without vLLM installed."""
