# SPDX-License-Identifier: Apache-2.0
"""Does CoLD help, where, and how much: ``train``, then ``evaluate``, then ``report``."""
