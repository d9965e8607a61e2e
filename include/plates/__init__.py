"""Plates to verified tarballs and back, on any S3-compatible store. Knows nothing of Airflow.

Where to look: `models` what travels between the steps, `layout` names and prefixes, `planning.plan_plate`,
`archiving.archive_plate`, `verifying.verify_archive`, `deleting.delete_plate`, `restoring`; `access.S3Access` opens buckets.
The one thing to know before changing anything: a plan is a pure function of a listing, and every stored byte is a pure
function of a plan. Resuming after a crash, single-file restore and the verifier all lean on that.
"""
