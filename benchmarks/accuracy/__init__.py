# SPDX-License-Identifier: Apache-2.0
"""Where a contrast helps and where it harms: models, problems and ways to decode, compared."""
