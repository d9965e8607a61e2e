"""The HTTP operations on notification channels and subscriptions (ICA OpenAPI: schemas NotificationChannel and
NotificationSubscription, and their lists, which have no pages; docs/protocols/icav2.md 6.1).

Invariant: what ICA offers and this simulator does not (mail, queues, other events, filters) is refused with
400, since a subscription that never fires would look like lost notifications.
"""

from __future__ import annotations

from typing import Any

from simulators.common import Answer, Call, Operation, ProblemError, iso_millis
from simulators.icav2.notifications import EVENT_CODE, PAYLOAD_VERSION, Channel, Subscription
from simulators.icav2.reading import checked_object, ok
from simulators.icav2.simulator import IcaWorld

_ADDRESS_LIMIT = 100  # characters, by the schema


def notification_routes(sim: IcaWorld) -> list[tuple[str, str, Operation]]:
    """The operations, for `add_routes`."""
    channels, subscriptions = _Channels(sim), _Subscriptions(sim)
    one = "/api/notificationChannels"
    other = "/api/projects/{projectId}/notificationSubscriptions"
    return [
        ("GET", one, channels.list),
        ("POST", one, channels.create),
        ("GET", f"{one}/{{channelId}}", channels.get),
        ("DELETE", f"{one}/{{channelId}}", channels.delete),
        ("GET", other, subscriptions.list),
        ("POST", other, subscriptions.create),
        ("GET", f"{other}/{{subscriptionId}}", subscriptions.get),
        ("DELETE", f"{other}/{{subscriptionId}}", subscriptions.delete),
    ]


def channel_json(channel: Channel, tenant_id: str) -> dict[str, Any]:
    return _head(channel, tenant_id) | {"enabled": channel.enabled, "type": "HTTP", "address": channel.address}


def subscription_json(subscription: Subscription, tenant_id: str) -> dict[str, Any]:
    return _head(subscription, tenant_id) | {
        "eventCode": EVENT_CODE,
        "enabled": subscription.enabled,
        "payloadVersion": PAYLOAD_VERSION,
        "notificationChannel": channel_json(subscription.channel, tenant_id),
    }


def _head(thing: Channel | Subscription, tenant_id: str) -> dict[str, Any]:
    at = iso_millis(thing.created)
    return {"id": thing.id, "timeCreated": at, "timeModified": at, "ownerId": thing.owner.id, "tenantId": tenant_id}


def _only(body: dict[str, Any], name: str, simulated: str) -> None:
    if body.get(name, simulated) != simulated:
        raise ProblemError(400, "Bad request", f"This simulator knows {name} {simulated} only.")


class _Channels:
    """A caller sees the channels of its own."""

    def __init__(self, sim: IcaWorld) -> None:
        self._sim = sim

    def create(self, call: Call) -> Answer:
        owner = self._sim.tokens.caller(call)
        body = checked_object(call, {"enabled": bool, "type": str, "address": str}, {})
        _only(body, "type", "HTTP")
        if len(body["address"]) > _ADDRESS_LIMIT:
            raise ProblemError(400, "Bad request", f"address has at most {_ADDRESS_LIMIT} characters.")
        channel = self._sim.notifications.add_channel(owner, body["enabled"], body["address"])
        return ok(channel_json(channel, self._sim.tokens.tenant_id), 201, ref=channel.id)

    def list(self, call: Call) -> Answer:
        owner = self._sim.tokens.caller(call)
        mine = [channel for channel in self._sim.notifications.channels.values() if channel.owner is owner]
        return ok({"items": [channel_json(channel, self._sim.tokens.tenant_id) for channel in mine]})

    def get(self, call: Call) -> Answer:
        return ok(channel_json(self._channel(call), self._sim.tokens.tenant_id))

    def delete(self, call: Call) -> Answer:
        self._sim.notifications.remove_channel(self._channel(call))
        return Answer(204)

    def _channel(self, call: Call) -> Channel:
        owner = self._sim.tokens.caller(call)
        channel = self._sim.notifications.channels.get(call.params["channelId"])
        if channel is None or channel.owner is not owner:
            raise ProblemError(404, "Not found", "No such notification channel.")
        return channel


class _Subscriptions:
    def __init__(self, sim: IcaWorld) -> None:
        self._sim = sim

    def create(self, call: Call) -> Answer:
        owner = self._sim.tokens.caller(call)
        project = self._sim.project_for(owner, call.params["projectId"], write=True)
        required = {"eventCode": str, "enabled": bool, "notificationChannelId": str}
        body = checked_object(call, required, {"filterExpression": str, "payloadVersion": str})
        _only(body, "eventCode", EVENT_CODE)
        _only(body, "payloadVersion", PAYLOAD_VERSION)
        if body.get("filterExpression"):
            raise ProblemError(400, "Bad request", "This simulator knows no filterExpression.")
        channel = self._sim.notifications.channels.get(body["notificationChannelId"])
        if channel is None or channel.owner is not owner:
            raise ProblemError(404, "Not found", "No such notification channel.")
        made = self._sim.notifications.subscribe(project.id, owner, body["enabled"], channel)
        return ok(subscription_json(made, self._sim.tokens.tenant_id), 201, ref=made.id)

    def list(self, call: Call) -> Answer:
        project = self._sim.project_for(self._sim.tokens.caller(call), call.params["projectId"])
        here = [each for each in self._sim.notifications.subscriptions.values() if each.project_id == project.id]
        return ok({"items": [subscription_json(each, self._sim.tokens.tenant_id) for each in here]})

    def get(self, call: Call) -> Answer:
        return ok(subscription_json(self._subscription(call), self._sim.tokens.tenant_id))

    def delete(self, call: Call) -> Answer:
        del self._sim.notifications.subscriptions[self._subscription(call, write=True).id]
        return Answer(204)

    def _subscription(self, call: Call, *, write: bool = False) -> Subscription:
        project = self._sim.project_for(self._sim.tokens.caller(call), call.params["projectId"], write=write)
        found = self._sim.notifications.subscriptions.get(call.params["subscriptionId"])
        if found is None or found.project_id != project.id:
            raise ProblemError(404, "Not found", "No such notification subscription.")
        return found
