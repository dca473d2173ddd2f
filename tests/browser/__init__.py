# SPDX-License-Identifier: Apache-2.0
"""The pages that the tools write, in a headless Chromium."""
