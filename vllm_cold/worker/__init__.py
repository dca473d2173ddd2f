# SPDX-License-Identifier: Apache-2.0
"""Worker: scores between logits and token; what it reports; workarounds."""
