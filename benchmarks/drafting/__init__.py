# SPDX-License-Identifier: Apache-2.0
"""Which drafter of speculative decoding suits contrastive requests.

Real models decode some workloads without speculation, and drafters are played over the recorded
tokens: a step emits the drafts that agree with the record, and one token more. Greedy decoding
gives the same tokens with any drafter, so this is what an engine would emit, but for rounding.
"""
