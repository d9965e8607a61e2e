"""What hooks share that make a client from a connection: one way for tasks, one for triggers.

Invariant: a connection is read when a client is asked for, never when a DAG is parsed.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from airflow.sdk import BaseHook, Connection

C = TypeVar("C")


class ClientHook(BaseHook, Generic[C]):
    """A subclass names its connection, in BaseHook's class attributes, and says how it becomes a client (`connect`)."""

    default_conn_name: str

    def __init__(self, conn_id: str | None = None):
        super().__init__()
        self.conn_id = conn_id or self.default_conn_name

    def connect(self, connection: Connection, *others: Connection) -> C:
        """The client, an async context manager. `others` are the connections that `others_of` names."""
        raise NotImplementedError

    def others_of(self, connection: Connection) -> list[str]:
        """The ids of further connections that the first one needs."""
        return []

    def client(self) -> C:
        """For tasks."""
        first = self.get_connection(self.conn_id)
        return self.connect(first, *map(self.get_connection, self.others_of(first)))

    async def aclient(self) -> C:
        """For triggers."""
        first = await self.aget_connection(self.conn_id)
        return self.connect(first, *[await self.aget_connection(other) for other in self.others_of(first)])
