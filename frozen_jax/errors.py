"""The one exception for what a user can cause and mend; `main` and the tools print it as one line and exit 1.

A message names the value, the rule it broke, the reason for the rule, and what to change.
"""

from __future__ import annotations


class UserError(Exception):
    """Bad input, configuration, file, image or checkpoint: shown without a traceback."""
