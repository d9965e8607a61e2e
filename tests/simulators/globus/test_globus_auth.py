"""Tokens, consents and rights of the simulated Globus, as the SDK meets them."""

from __future__ import annotations

import globus_sdk  # noqa: TID253
import httpx
import pytest
from globus_sdk.scopes import TransferScopes  # noqa: TID253

from simulators.globus import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, DESTINATION_COLLECTION, JGI_COLLECTION

MAPPED = "33333333-3333-4333-8333-333333333333"


def test_a_client_app_and_a_confidential_client_get_tokens(globus):
    for client in (globus.client, globus.bare_client()):
        assert client.get_endpoint(JGI_COLLECTION)["display_name"] == "JGI Genome Portal shared endpoint 3"
    assert globus.calls("/oauth2/token") == [200, 200]


def test_a_wrong_secret_is_refused(globus):
    with pytest.raises(globus_sdk.AuthAPIError) as refusal:
        globus.new_client(DEFAULT_CLIENT_ID, "wrong").get_submission_id()
    assert refusal.value.http_status == 401


def test_an_old_token_meets_401_and_the_sdk_fetches_another_once(start):
    globus = start(token_lifetime_seconds=172_800)
    globus.client.get_submission_id()
    globus.advance(172_799)
    globus.client.get_submission_id()
    assert globus.calls("/submission_id") == [200, 200]
    globus.advance(2)
    globus.client.get_submission_id()
    assert globus.calls("/submission_id") == [200, 200, 401, 200]
    assert globus.calls("/oauth2/token") == [200, 200]


def test_revoked_tokens_and_calls_without_one_are_refused(globus):
    globus.client.get_submission_id()
    assert globus.on(globus.sim.tokens.revoke_all) == 1
    globus.client.get_submission_id()
    assert globus.calls("/submission_id") == [200, 401, 200]
    answer = httpx.get(f"{globus.url}/v0.10/submission_id")
    assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")


def test_no_token_and_no_secret_stands_in_the_journal(globus):
    globus.client.get_submission_id()
    journal = repr([entry.as_dict() for entry in globus.sim.journal.entries()])
    assert not any(token in journal for token in globus.sim.tokens.issued())
    assert DEFAULT_CLIENT_SECRET not in journal


def test_a_mapped_collection_asks_for_a_consent_by_its_scope(globus):
    globus.on(lambda: globus.sim.add_endpoint(MAPPED, entity_type="GCSv5_mapped_collection", needs_data_access=True))
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        globus.client.operation_ls(MAPPED, path="/")
    needed = refusal.value.info.consent_required.required_scopes
    assert (refusal.value.http_status, refusal.value.code) == (403, "ConsentRequired")
    assert needed == [f"{TransferScopes.all}[*https://auth.globus.org/scopes/{MAPPED}/data_access]"]
    data = globus_sdk.TransferData(JGI_COLLECTION, MAPPED, submission_id=globus.client.get_submission_id()["value"])
    data.add_item("/a", "/b")
    with pytest.raises(globus_sdk.TransferAPIError, match="ConsentRequired"):
        globus.client.submit_transfer(data)
    consenting = globus.new_client()
    consenting.add_app_data_access_scope(MAPPED)  # before its first token: the app keeps that one
    assert consenting.operation_ls(MAPPED, path="/")["DATA"] == []
    assert globus.bare_client(needed[0]).operation_ls(MAPPED, path="/")["DATA"] == []


def test_a_guest_collection_has_no_such_scope(globus):
    scope = f"{TransferScopes.all}[*https://auth.globus.org/scopes/{JGI_COLLECTION}/data_access]"
    with pytest.raises(globus_sdk.AuthAPIError) as refusal:
        globus.bare_client(scope)
    assert refusal.value.http_status == 400
    assert "unknown_scope" in refusal.value.text


def test_a_session_that_a_service_account_cannot_have_is_named(globus):
    wanted = {"session_message": "log in with MFA", "session_required_single_domain": ["nersc.gov"]}
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, authorization_parameters=wanted))
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        globus.client.operation_ls(DESTINATION_COLLECTION, path="/")
    assert refusal.value.info.authorization_parameters.session_required_single_domain == ["nersc.gov"]


def test_an_unknown_endpoint_is_404(globus):
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        globus.client.get_endpoint(MAPPED)
    assert (refusal.value.http_status, refusal.value.code) == (404, "EndpointNotFound")


def test_one_client_does_not_see_the_tasks_of_another(globus):
    task = globus.submit(globus.seed("a"))
    globus.on(lambda: globus.sim.tokens.add_client(MAPPED, "other"))
    other = globus.new_client(MAPPED, "other")
    assert list(other.task_list()) == []
    with pytest.raises(globus_sdk.TransferAPIError, match="TaskNotFound"):
        other.get_task(task)
