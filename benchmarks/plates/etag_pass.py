"""The ETag that S3 will give a file sent in parts, as the SOP computes it on the local tarball: `etag_pass.py FILE`.

Written from the rule alone (docs/protocols/s3.md 1.8): up to 8 MiB the MD5; else parts of 8 MiB, doubled until 10,000 parts
are enough, and the MD5 of their MD5s with the number of parts.
"""

import hashlib
import sys

PART = 8 * 1024 * 1024
MOST_PARTS = 10_000


def multipart_etag(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - runs without site-packages, in a few milliseconds
        size = file.seek(0, 2)
        file.seek(0)
        if size <= PART:
            return hashlib.md5(file.read()).hexdigest()
        part = PART
        while size > part * MOST_PARTS:
            part *= 2
        digests = [hashlib.md5(chunk).digest() for chunk in iter(lambda: file.read(part), b"")]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


if __name__ == "__main__":
    print(multipart_etag(sys.argv[1]))
