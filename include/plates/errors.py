"""What can go wrong with a plate beyond the core's errors; each class is one decision a caller has to take.

Invariant: `SourceChanged` means plan again, `ApprovalVoid` means verify and ask again, and neither may ever be
retried by itself.
"""

from __future__ import annotations

from include.core.errors import VerificationError


class ApprovalVoid(VerificationError):
    """What was approved is no longer what is there. Nothing was deleted; verify again and ask again."""


class RetentionRefused(VerificationError):
    """The archive bucket does not protect the tarball as the retention precondition demands. Nothing was deleted."""
