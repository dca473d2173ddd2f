# SPDX-License-Identifier: Apache-2.0
"""What is gained by a contrast with the same prompt without a part: its text, its instruction."""
