# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/ and README.md: what they show runs, and the site builds."""
