"""Which objects a plan looks at before they are archived: by HEAD, by reading one byte, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import plate
from harness.proxy import proxied
from include.plates.layout import BROAD2018
from include.plates.models import ArchiveSettings, PlatePlan
from include.plates.plan import plan_plate
from include.s3.bucket import S3Access
from tests.include.plates.test_archive import IMAGES


@pytest.mark.parametrize("encryption", ["aws:kms", None])
def test_an_object_is_read_for_a_trial_where_head_does_not_tell_whether_it_may_be(encryption: str | None, bench: Bench):
    """Who may HEAD may GET, except where a key of KMS is needed besides. A key that was not looked at is read in any case."""
    one = plate()
    bench.put({IMAGES + name: b"1" for name in ("a", "b", "c")})

    def head(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        if request.method != "HEAD":
            return None
        answer = forward(request)
        answer.headers |= {"x-amz-server-side-encryption": encryption} if encryption else {}
        return answer

    async def plan_of(access: S3Access, **options: Any) -> PlatePlan:
        source, cold = access.bucket(bench.live), access.bucket(bench.cold)
        return await plan_plate(
            one, BROAD2018, ArchiveSettings(compression="none"), source=source, archive=cold, **options
        )

    def read(front: Any) -> list[str]:
        return [proxy.key_of(r)[-1] for r in front.requests if r.method == "GET" and proxy.key_of(r).startswith(IMAGES)]

    with proxied(bench.url) as front:
        front.add(head)
        access = servers.access(front.url)
        small = run(plan_of(access, probe_from_bytes=4))
        assert [o.tags for v in small.volumes for o in v.objects] == ["", None, ""] and not read(front)
        bare = run(plan_of(access, probe=False))
        assert [o.tags for v in bare.volumes for o in v.objects] == [None] * 3
        run(plan_of(access, probe_from_bytes=3))
        assert sorted(read(front)) == (["a", "b", "c"] if encryption else [])
        access.close()
