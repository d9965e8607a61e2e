"""Cleans up partial files: what our own failed copies left at a destination, since a copy with SKIP would keep it.

Invariant: this is the only place of the package that deletes. What may go is decided by
`verify.partial_files`; here each file is looked at once more by its id (a listing may lag), and goes only if it still is what
was judged.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from include.core.errors import NotFound, TransientError
from include.core.ledger import SendFence, Submission
from include.icav2.client import ICAv2Client
from include.icav2.context import CopyContext
from include.icav2.models import Data, Destination
from include.icav2.plan import look_at

log = logging.getLogger(__name__)


def partial_file_cleanup(
    context: CopyContext, destination: Destination, removed: Sequence[Data]
) -> Callable[[Submission, SendFence], Awaitable[None]]:
    """The `prepare` step of a copy: deletes `removed` by exact id, under the fence, and waits until they are gone.

    It raises TransientError when they are not gone in time: then nothing is sent yet.
    """

    async def clean_up(_attempt: Submission, fence: SendFence) -> None:
        deleting = set()
        for data in removed:
            if await _unchanged(context.client, destination, data):
                log.info("deleting our own partial file %s (%s)", data.path, data.status)
                await context.client.delete_data(destination.project_id, data.id, fence=fence)
                deleting.add(data.id)
        waited = 0.0
        while deleting:
            if waited >= context.deletion_seconds:
                why = f"our own partial files in {destination.dest_uri} are being deleted"
                raise TransientError(why, retry_after=context.come_back_seconds)
            await context.sleep(1.0)
            waited += 1.0
            deleting &= {data.id for data in (await look_at(context.client, destination)).values()}

    return clean_up


async def _unchanged(client: ICAv2Client, destination: Destination, data: Data) -> bool:
    """Whether a file still is what was judged. Anything else is left alone: the next look judges it anew."""
    try:
        return await client.data(destination.project_id, data.id) == data
    except NotFound:
        return False
