"""Which right an operation of S3 needs, by its name in a policy: what a refusal (403) must name to be of use.

Invariant: a right is named for every operation that is called here; docs/operations.md lists the same ones.
"""

from __future__ import annotations

_WITH_VERSIONS = {
    "get_object": ("s3:GetObject", "s3:GetObjectVersion"),
    "head_object": ("s3:GetObject", "s3:GetObjectVersion"),
    "get_object_tagging": ("s3:GetObjectTagging", "s3:GetObjectVersionTagging"),
    "put_object_tagging": ("s3:PutObjectTagging", "s3:PutObjectVersionTagging"),
    "delete_object": ("s3:DeleteObject", "s3:DeleteObjectVersion"),
}
_OTHERS = {
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "complete_multipart_upload": "s3:PutObject",
    "copy_object": "s3:PutObject, and s3:GetObject on the source",
    "create_multipart_upload": "s3:PutObject",
    "delete_objects": "s3:DeleteObject, and s3:DeleteObjectVersion where there are versions",
    "get_bucket_request_payment": "s3:GetBucketRequestPayment",
    "get_bucket_versioning": "s3:GetBucketVersioning",
    "get_object_lock_configuration": "s3:GetBucketObjectLockConfiguration",
    "head_bucket": "s3:ListBucket",
    "list_buckets": "s3:ListAllMyBuckets",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_object_versions": "s3:ListBucketVersions",
    "list_objects": "s3:ListBucket",
    "list_objects_v2": "s3:ListBucket",
    "list_parts": "s3:ListMultipartUploadParts",
    "put_object": "s3:PutObject",
    "restore_object": "s3:RestoreObject",
    "upload_part": "s3:PutObject",
    "upload_part_copy": "s3:PutObject, and s3:GetObject on the source",
}


def right_for(operation: str, *, version: bool = False) -> str:
    """The right that a botocore operation needs; `version`: it names a version of the object."""
    if operation in _WITH_VERSIONS:
        return _WITH_VERSIONS[operation][version]
    return _OTHERS.get(operation, f"to {operation}")
