"""Plates to verified tarballs and back, on any S3-compatible store. Knows nothing of Airflow.

Where to look: `models` what travels between the steps, `layout` names and prefixes, `plan.plan_plate`,
`archive.archive_plate`, `verify.verify_archive`, `compare`, `delete.delete_plate`, `restore`; `include.s3.client` opens buckets.
Invariant: a plan is a pure function of a listing, and every stored byte is a pure
function of a plan. Resuming after a crash, single-file restore and the verifier all lean on that.
"""
