# SPDX-License-Identifier: Apache-2.0
"""Quantised base models with LoRA and CoLD on CPU: ``make`` writes checkpoints, ``reference`` reads
them into transformers, ``check`` compares tokens and times.
"""
