"""The tree of errors, each with the exit code that the command line gives it.

DeblurError            1   the job failed
+-- UsageError         2   wrong usage or wrong input: no such bucket, no photos, a refused place
+-- PhotoError         -   one photo cannot be handled: a row with its reason, never an exit
"""

from __future__ import annotations


class DeblurError(Exception):
    """The job failed. The message says what was wrong, what was received and what to do."""

    exit_code = 1


class UsageError(DeblurError):
    """The command or its input is wrong; nothing was done."""

    exit_code = 2


class PhotoError(DeblurError):
    """One photo cannot be handled. Its text is the reason that the ledger records."""
