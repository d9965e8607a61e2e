"""The simulated ICA speaks the protocol: tokens, media types, errors, dates, and libica's own models."""

from __future__ import annotations

import base64
import json
import re

import httpx
import pytest
from ica_rehearsal import CONFORMANCE, MEDIA_TYPE, SOURCE, START, TARGET
from libica.openapi import v3 as libica
from libica.openapi.v3.api.job_api import JobApi
from libica.openapi.v3.api.project_data_api import ProjectDataApi
from libica.openapi.v3.api.project_data_copy_batch_api import ProjectDataCopyBatchApi
from libica.openapi.v3.api.token_api import TokenApi
from libica.openapi.v3.models import CreateFolder, CreateProjectDataCopyBatch, CreateProjectDataCopyBatchItem

from simulators.icav2 import DEFAULT_API_KEY


def claims(token: str) -> dict:
    middle = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))


def test_a_token_names_the_ica_audience_and_expires_after_the_lifetime(rehearse):
    ica = rehearse(token_lifetime_seconds=600)
    token = ica.call("POST", "/api/tokens", headers={"X-API-Key": DEFAULT_API_KEY}).json()["token"]
    assert "ica" in claims(token)["aud"]
    assert claims(token)["exp"] == START + 600


def test_an_expired_token_is_refused_and_a_new_one_is_accepted(rehearse):
    ica = rehearse(token_lifetime_seconds=600)
    ica.advance(599)
    assert ica.call("GET", "/api/jobs").status_code == 200
    ica.advance(1)
    assert ica.call("GET", "/api/jobs").status_code == 401
    token = ica.call("POST", "/api/tokens", headers={"X-API-Key": DEFAULT_API_KEY}).json()["token"]
    assert ica.call("GET", "/api/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_requests_without_credentials_or_with_wrong_ones_are_refused(rehearse):
    ica = rehearse()
    assert ica.call("POST", "/api/tokens", headers={"Authorization": ""}).status_code == 401
    assert ica.call("POST", "/api/tokens", headers={"X-API-Key": "wrong"}).status_code == 401
    assert ica.call("GET", "/api/jobs", headers={"Authorization": "Bearer nonsense"}).status_code == 401
    assert ica.call("GET", "/api/jobs", headers={"Authorization": "", "X-API-Key": "wrong"}).status_code == 401


def test_an_api_key_may_be_sent_on_every_call(rehearse):
    ica = rehearse()
    answer = ica.call("GET", "/api/jobs", headers={"Authorization": "", "X-API-Key": DEFAULT_API_KEY})
    assert answer.status_code == 200


def test_only_a_token_from_a_password_can_be_refreshed(rehearse):
    ica = rehearse()
    assert ica.call("POST", "/api/tokens:refresh").status_code == 403
    basic = "Basic " + base64.b64encode(b"service:rehearsal-password").decode()
    token = ica.call("POST", "/api/tokens", headers={"Authorization": basic}).json()["token"]
    answer = ica.call("POST", "/api/tokens:refresh", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert answer.json()["token"] != token


def test_revoked_tokens_are_refused(rehearse):
    ica = rehearse()
    assert ica.control.post("/tokens/revoke").json() == {"revoked": 1}
    assert ica.call("GET", "/api/jobs").status_code == 401


def test_rights_decide_who_may_read_and_who_may_write(rehearse):
    ica = rehearse()
    folder, data = ica.folder("/in/"), ica.seed("/a.txt")
    rights = lambda right: ica.control.post("/projects", json={"id": TARGET, "rights": {"service": right}})  # noqa: E731
    rights("viewer")
    assert ica.call("GET", f"/api/projects/{TARGET}/data").status_code == 200
    assert ica.submit([data], folder).status_code == 403
    assert ica.call("POST", f"/api/projects/{TARGET}/data:createFolder", json={"name": "x"}).status_code == 403
    rights("none")
    assert ica.call("GET", f"/api/projects/{TARGET}/data").status_code == 403
    assert ica.call("GET", "/api/projects/33333333-3333-4333-8333-333333333333/data").status_code == 404


def test_a_source_in_a_forbidden_project_refuses_the_batch(rehearse):
    ica = rehearse()
    folder, data = ica.folder("/in/"), ica.seed("/a.txt")
    ica.control.post("/projects", json={"id": SOURCE, "rights": {"service": "none"}})
    assert ica.submit([data], folder).status_code == 403


def test_unknown_things_are_problems_with_status_404(rehearse):
    ica = rehearse()
    other = "44444444-4444-4444-8444-444444444444"
    for path in (
        f"/api/jobs/{other}",
        f"/api/projects/{TARGET}/dataCopyBatch/{other}",
        f"/api/projects/{TARGET}/data/fil.{'0' * 32}",
        "/api/nothing",
    ):
        answer = ica.call("GET", path)
        assert answer.status_code == answer.json()["status"] == 404
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "change",
    [
        {"items": None},
        {"items": []},
        {"items": ["fil.x"]},
        {"copyUserTags": None},
        {"copyUserTags": "yes"},
        {"actionOnExist": "FAIL"},
    ],
    ids=str,
)
def test_a_batch_that_breaks_the_schema_is_refused_with_400(rehearse, change):
    ica = rehearse()
    assert ica.submit([ica.seed("/a.txt")], ica.folder("/in/"), **change).status_code == 400
    assert ica.journal("job_accepted") == []


def test_other_media_types_are_refused(rehearse):
    ica = rehearse()
    assert ica.call("GET", "/api/jobs", headers={"Accept": "application/vnd.illumina.v4+json"}).status_code == 406
    url = f"/api/projects/{TARGET}/data:createFolder"
    assert ica.call("POST", url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert ica.call("POST", url, content=b"{", headers={"Content-Type": MEDIA_TYPE}).status_code == 400


def test_answers_are_compressed_only_when_asked_for(rehearse):
    ica = rehearse()
    for number in range(20):
        ica.seed(f"/a{number}.txt", project=TARGET)
    url = f"/api/projects/{TARGET}/data"
    assert ica.call("GET", url, headers={"Accept-Encoding": "gzip"}).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in ica.call("GET", url, headers={"Accept-Encoding": "identity"}).headers


def test_dates_are_those_of_the_simulated_clock(rehearse):
    ica = rehearse()
    ica.advance(0.25)
    answer = ica.submit([ica.seed("/a.txt")], ica.folder("/in/"))
    assert answer.headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert answer.json()["job"]["timeCreated"] == "2027-01-15T08:00:00.250Z"


def test_no_credential_reaches_the_journal(rehearse):
    ica = rehearse()
    ica.call("GET", "/api/jobs", headers={"Authorization": "", "X-API-Key": DEFAULT_API_KEY})
    basic = base64.b64encode(b"service:rehearsal-password").decode()
    token = ica.call("POST", "/api/tokens", headers={"Authorization": f"Basic {basic}"}).json()["token"]
    text = ica.control.get("/journal").text
    assert "POST" in text
    assert not [secret for secret in (DEFAULT_API_KEY, "rehearsal-password", basic, token) if secret in text]


def test_libica_drives_a_copy_from_token_to_items(rehearse):
    ica = rehearse()
    ica.seed("/run 1/a.fastq.gz", 30 * 10**9)
    ica.seed("/run 1/b.txt", 30)
    host = f"{ica.server.url}/ica/rest"
    with libica.ApiClient(libica.Configuration(host=host, api_key={"ApiKeyAuth": DEFAULT_API_KEY})) as client:
        token = TokenApi(client).create_jwt_token().token
    assert token
    with libica.ApiClient(libica.Configuration(host=host, access_token=token)) as client:
        listed = ProjectDataApi(client).get_project_data_list(SOURCE, parent_folder_path="/run 1/", type="FILE")
        assert [item.data.details.path for item in listed.items] == ["/run 1/a.fastq.gz", "/run 1/b.txt"]
        assert listed.next_page_token == ""
        folder = ProjectDataApi(client).create_folder(TARGET, CreateFolder(name="d e", folder_path="/cache/"), "key-1")
        batch = ProjectDataCopyBatchApi(client).create_project_data_copy_batch(
            TARGET,
            CreateProjectDataCopyBatch(
                items=[CreateProjectDataCopyBatchItem(data_id=item.data.id) for item in listed.items],
                destination_folder_id=folder.data.id,
                copy_user_tags=True,
                copy_technical_tags=True,
                copy_instrument_info=True,
                action_on_exist="SKIP",
            ),
        )
        assert JobApi(client).get_job(batch.job.id).status == "INITIALIZED"
        ica.run_until_idle()
        assert JobApi(client).get_job(batch.job.id).status == "SUCCEEDED"
        assert [job.id for job in JobApi(client).get_jobs(status=["SUCCEEDED"]).items] == [batch.job.id]
        again = ProjectDataCopyBatchApi(client).get_project_data_copy_batch(TARGET, batch.id)
        assert again.destination_folder_id == folder.data.id
        items = ProjectDataCopyBatchApi(client).get_project_data_copy_batch_items(TARGET, batch.id).items
        assert {item.processing.status for item in items} == {"COPIED"}
        new = ProjectDataApi(client).get_project_data(TARGET, items[0].created_project_data.data.id)
        assert (new.data.details.path, new.data.details.file_size_in_bytes) == ("/cache/d e/a.fastq.gz", 30 * 10**9)
        with pytest.raises(libica.NotFoundException if hasattr(libica, "NotFoundException") else Exception) as refused:
            ProjectDataApi(client).get_project_data(TARGET, "fil." + "0" * 32)
        assert refused.value.status == 404
        ProjectDataApi(client).delete_data(TARGET, new.data.id)
    assert re.fullmatch(r"fil\.[0-9a-f]{32}", new.data.id)


def test_every_operation_of_the_specification_that_is_simulated_answers_as_it_says(rehearse):
    ica = rehearse()
    CONFORMANCE.seen.clear()
    data, folder = ica.seed("/a.txt"), ica.folder("/in/")
    batch = ica.copy([data], folder)
    project = f"/api/projects/{TARGET}"
    basic = {"Authorization": "Basic " + base64.b64encode(b"service:rehearsal-password").decode()}
    token = ica.call("POST", "/api/tokens", headers=basic).json()["token"]
    ica.call("POST", "/api/tokens:refresh", headers={"Authorization": f"Bearer {token}"})
    ica.get("/api/jobs")
    ica.get(f"/api/jobs/{batch['job']['id']}")
    item = ica.items(batch)[0]
    ica.get(f"{project}/dataCopyBatch/{batch['id']}/items/{item['id']}")
    new = item["createdProjectData"]["data"]["id"]
    ica.listing()
    ica.get(f"{project}/data/{new}")
    assert ica.call("POST", f"{project}/data:createFolder", json={"name": "f"}).status_code == 201
    assert ica.call("POST", f"{project}/data", json={"name": "g", "dataType": "FILE"}).status_code == 201
    made = ica.call("POST", f"{project}/data:createFileWithUploadUrl", json={"name": "h"}).json()["data"]["id"]
    assert ica.call("POST", f"{project}/data/{made}:createUploadUrl").status_code == 200
    assert ica.call("POST", f"{project}/data/{new}:createDownloadUrl").status_code == 200
    moved = ica.call("POST", f"{project}/dataMoveBatch", json={"items": [{"dataId": new}]})
    assert moved.status_code == 201
    ica.run_until_idle()
    assert "/a.txt" in ica.files() and "/in/a.txt" not in ica.files()
    assert ica.call("POST", f"{project}/data/{new}:delete").status_code == 204
    simulated = {
        f"{method.upper()} {path}"
        for path, operations in CONFORMANCE.specification["paths"].items()
        for method, operation in operations.items()
        if operation["operationId"] not in ("updateProjectData", "linkDataToProject", "deleteData")
    }
    assert CONFORMANCE.seen == simulated


def test_the_validator_of_these_tests_refuses_a_wrong_answer():
    request = httpx.Request("GET", "http://127.0.0.1/ica/rest/api/jobs")
    job_without_owner = {"items": [{"id": TARGET, "status": "RUNNING"}], "nextPageToken": ""}
    with pytest.raises(Exception, match="required property"):
        CONFORMANCE.check(
            httpx.Response(200, json=job_without_owner, headers={"content-type": MEDIA_TYPE}, request=request)
        )
