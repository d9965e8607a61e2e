"""Clears away what our own failed copies left at a destination, since a copy with SKIP would keep it.

The thing to know before changing it: this is the only place of the package that deletes. What may go is decided by
`verify.leftovers`; here each file is looked at once more by its id (a listing may lag), and goes only if it still is what
was judged.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from include.core.errors import NotFound, TransientError
from include.core.ledger import SendFence, Submission
from include.icav2.client import ICAv2Client
from include.icav2.context import Desk
from include.icav2.models import Data, Destination
from include.icav2.resolve import look_at

log = logging.getLogger(__name__)


def sweeper(
    desk: Desk, destination: Destination, swept: Sequence[Data]
) -> Callable[[Submission, SendFence], Awaitable[None]]:
    """The `prepare` step of a copy: deletes `swept` by exact id, under the fence, and waits until they are gone.

    It raises TransientError when they are not gone in time: then nothing is sent yet.
    """

    async def sweep(_attempt: Submission, fence: SendFence) -> None:
        doomed = set()
        for data in swept:
            if await _unchanged(desk.client, destination, data):
                log.info("removing our own leftover %s (%s)", data.path, data.status)
                await desk.client.delete_data(destination.project_id, data.id, fence=fence)
                doomed.add(data.id)
        waited = 0.0
        while doomed:
            if waited >= desk.deletion_seconds:
                why = f"our own leftovers in {destination.dest_uri} are being deleted"
                raise TransientError(why, retry_after=desk.come_back_seconds)
            await desk.sleep(1.0)
            waited += 1.0
            doomed &= {data.id for data in (await look_at(desk.client, destination)).values()}

    return sweep


async def _unchanged(client: ICAv2Client, destination: Destination, data: Data) -> bool:
    """Whether a file still is what was judged. Anything else is left alone: the next look judges it anew."""
    try:
        return await client.data(destination.project_id, data.id) == data
    except NotFound:
        return False
