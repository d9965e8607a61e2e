"""Parse, flip and refuse: the SOP's own inputs, every refusal with its place, and paths that must survive to the letter."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.core.errors import RequestError
from include.core.request import load
from include.icav2.manifest import decode_b64gz, flip, flipped, parse_json, parse_uri, refusals
from include.icav2.models import CopyRequest

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "icav2"
S = "icav2://b23fb516-d852-4985-adcc-831c12e8cd22"
D = "icav2://7595e8f2-32d3-4c76-a324-c6a85dae87b5"


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text())


def packed(document: Any) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def plan(**conf: Any) -> list[dict[str, Any]]:
    return [entry.model_dump() for entry in flipped(load(CopyRequest, conf))]


def refused(**conf: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        plan(**conf)
    return caught.value.problems


def only(**conf: Any) -> str:
    problems = refused(**conf)
    assert len(problems) == 1, problems
    return problems[0]


# -- the SOP's inputs ---------------------------------------------------------------------------------------------


def test_the_plain_input_of_the_sop_gives_its_flip_manifest_output():
    assert plan(**fixture("gen1_input_manifest.json")) == fixture("gen1_flip_output.json")


def test_the_packed_input_of_the_sop_gives_two_destinations():
    entries = plan(**fixture("gen1_input_manifest_b64gz.json"))
    decoded = fixture("gen1_input_manifest_b64gz.decoded.json")
    assert decode_b64gz(fixture("gen1_input_manifest_b64gz.json")["manifest_b64gz"]) == decoded
    assert [len(entry["source_uris"]) for entry in entries] == [4, 1]
    assert {(s, e["dest_uri"]) for e in entries for s in e["source_uris"]} == {
        (source, destination) for source, destinations in decoded.items() for destination in destinations
    }


def test_both_forms_of_one_manifest_give_the_same_plan_and_line_breaks_do_not_matter():
    manifest = {f"{S}/a/1": [f"{D}/x/"], f"{S}/a/2": [f"{D}/y/", f"{D}/x/"]}
    text = packed(manifest)
    wrapped = "\n  ".join(text[i : i + 20] for i in range(0, len(text), 20))
    assert plan(manifest=manifest) == plan(manifest_b64gz=wrapped)
    assert flipped(CopyRequest(manifest_uri="s3://b/m.json"), json.dumps(manifest).encode()) == flip(manifest)


def test_a_repeated_destination_counts_once_and_sources_keep_their_order():
    manifest = {f"{S}/b": [f"{D}/x/", f"{D}/x/"], f"{S}/a": [f"{D}/x/"]}
    assert plan(manifest=manifest) == [{"dest_uri": f"{D}/x/", "source_uris": [f"{S}/b", f"{S}/a"]}]


def test_a_destination_without_its_slash_is_accepted_and_kept_as_it_was_spelled():
    assert plan(manifest={f"{S}/a": [f"{D}/x"]})[0]["dest_uri"] == f"{D}/x"


# -- opaque paths -------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "a b.txt", " leading", "trailing ", "#hash", "q?x=1", "100%25", "%20", "a+b", "a&b=c", "it's", '"quoted"', "naïve",
    "nai\u0308ve", "日本語", "A.TXT", "a.txt", "back\\slash", "semi;colon", "tab\there", "new\nline", "..", "[0]", "”",
]  # fmt: skip


def test_odd_names_survive_to_the_letter():
    manifest = {f"{S}/in/{name}": [f"{D}/out/{index}/"] for index, name in enumerate(ODD_NAMES)}
    entries = plan(manifest=manifest)
    assert sorted(entry["source_uris"][0] for entry in entries) == sorted(manifest)
    for name in ODD_NAMES:
        uri = parse_uri(f"{S}/in/{name}")
        assert (uri.name, uri.parent, uri.path) == (name, "/in/", f"/in/{name}")


def test_case_twins_and_unicode_forms_are_different_files_and_may_go_to_one_folder():
    names = ["a.txt", "A.txt", "naïve", "nai\u0308ve"]
    manifest = {f"{S}/in/{name}": [f"{D}/x/"] for name in names}
    assert plan(manifest=manifest) == [{"dest_uri": f"{D}/x/", "source_uris": list(manifest)}]


def test_the_root_of_a_project_is_a_destination():
    uri = parse_uri(f"{D}/")
    assert (uri.path, uri.name, uri.is_folder) == ("/", "", True)
    assert plan(manifest={f"{S}/a": [f"{D}/"]}) == [{"dest_uri": f"{D}/", "source_uris": [f"{S}/a"]}]


segment = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(segment, min_size=1, max_size=5), st.booleans())
def test_any_path_is_cut_at_its_slashes_and_nothing_else(segments, folder):
    path = "/" + "/".join(segments) + ("/" if folder else "")
    uri = parse_uri(S + path)
    assert uri.path == path
    assert uri.name == segments[-1]
    assert uri.parent + uri.name + ("/" if folder else "") == path


names = st.sampled_from([f"f{n}" for n in range(6)])
folders = st.sampled_from([f"{D}/x{n}/" for n in range(5)])
manifests = st.dictionaries(
    st.builds(lambda d, n: f"{S}/{d}/{n}", st.sampled_from("ab"), names),
    st.lists(folders, min_size=1, max_size=4),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(manifests)
def test_a_flip_holds_exactly_the_pairs_of_the_manifest_once_sorted_and_in_order(manifest):
    entries = flip(manifest)
    pairs = [(source, entry.dest_uri) for entry in entries for source in entry.source_uris]
    assert sorted(pairs) == sorted({(s, d) for s, ds in manifest.items() for d in ds})
    destinations = [entry.dest_uri for entry in entries]
    assert destinations == sorted(set(destinations))
    order = list(manifest)
    assert all(e.source_uris == sorted(e.source_uris, key=order.index) for e in entries)


@settings(max_examples=200, deadline=None)
@given(manifests)
def test_a_manifest_is_refused_exactly_when_two_of_its_sources_share_a_name_at_one_destination(manifest):
    clash = any(
        len({s.rsplit("/", 1)[-1] for s in entry.source_uris}) < len(entry.source_uris) for entry in flip(manifest)
    )
    assert bool(refusals(manifest, "manifest", "refuse")) == clash


# -- refusals -----------------------------------------------------------------------------------------------------

HERE = f"manifest[“{S}/a”]"


@pytest.mark.parametrize(
    ("manifest", "place", "what", "remedy"),
    [
        ({f"{S}/a": [f"{D[8:]}/x/"]}, f"{HERE}[0]", "does not start with icav2://", "write icav2://PROJECT-ID/path"),
        ({f"{S}/a": ["s3://bucket/x/"]}, f"{HERE}[0]", "s3://bucket/x/", "write icav2://PROJECT-ID/path"),
        ({f"{S}/a": ["icav2://my project/x/"]}, f"{HERE}[0]", "“my project” is not a project id", "give the project's UUID"),
        ({f"{S}/a": [D]}, f"{HERE}[0]", "has no path", "add / and the path"),
        ({f"{S}/a": [f"{D}/x//y/"]}, f"{HERE}[0]", "empty folder name", "write one /"),
        ({f"{S}/a": [f"{D}/x/", f"{D}/y//"]}, f"{HERE}[1]", "empty folder name", "write one /"),
        ({f"{S}/a": []}, HERE, "names no destination", "add one"),
        ({f"{S}/a": f"{D}/x/"}, HERE, "is not a list of folder URIs", 'write ["icav2://'),
        ({f"{S}/a": [1]}, HERE, "is not a list of folder URIs", 'write ["icav2://'),
        ({f"{S}/a": None}, HERE, "is not a list of folder URIs", 'write ["icav2://'),
        ({f"{S}/a": [f"{D}/x/", f"{D}/x"]}, f"{HERE}[1]", f"{HERE}[0] spells", "spell it one way"),
        ({f"{S}/a": [f"{D}/x/", f"{D.upper().replace('ICAV2', 'icav2')}/x/"]}, f"{HERE}[1]", "spells", "spell it one way"),
        ({f"{S}/": [f"{D}/x/"]}, f"manifest[“{S}/”]", "a whole project cannot be a source", "name its files"),
        ({f"{S}/a": [f"{S}/x/"]}, f"{HERE}[0]", "in one project", "set same_project to allow"),
        ({f"{S}/a": [f"{D}/{'x' * 2000}/"]}, f"{HERE}[0]", "longer than 2000 bytes", "shorter path"),
        ({f"{S}/a": [f"{D}/x\ud800/"]}, f"{HERE}[0]", "no path can hold", "correct the name"),
        ({f"{S}/a": [f"{D}/x\0/"]}, f"{HERE}[0]", "no path can hold", "correct the name"),
        ({f"{S}/a": [f"{D}/x/"], f"{S}/b/a": [f"{D}/x/"]}, f"manifest[“{S}/b/a”][0]", "both named “a”", "use two folders"),
        ({f"{S}/a": [f"{D}/x/"], f"{S}/b/a/": [f"{D}/x/"]}, f"manifest[“{S}/b/a/”][0]", "both named “a”", "use two folders"),
    ],
)  # fmt: skip
def test_each_refusal_names_its_place_the_fault_and_the_remedy(manifest, place, what, remedy):
    problem = only(manifest=manifest)
    assert problem.startswith((f"{place}:", f"{place} ")), problem
    assert what in problem
    assert remedy in problem


@pytest.mark.parametrize("value", [{}, [], "text", 3, True, None])
def test_a_manifest_that_is_no_object_with_sources_is_refused(value):
    problem = only(manifest_b64gz=packed(value))
    assert problem.startswith("manifest_b64gz ")
    assert "give an object of source → list of destinations" in problem


def test_an_empty_manifest_is_refused_in_the_plain_form_too():
    assert "manifest is empty" in only(manifest={})


def test_a_whole_conf_where_its_manifest_belongs_is_understood_in_every_form():
    """As the README shows it, pasted into the field of the form; and as the file that is given to `airflow dags trigger`."""
    whole = {"manifest": {f"{S}/a": [f"{D}/x/"]}}
    expected = plan(**whole)
    assert plan(manifest=whole) == plan(manifest_b64gz=packed(whole)) == expected
    by_uri = flipped(load(CopyRequest, {"manifest_uri": "s3://b/m.json"}), json.dumps(whole).encode())
    assert [entry.model_dump() for entry in by_uri] == expected


def test_a_whole_conf_with_more_than_its_manifest_is_not_taken_for_a_manifest():
    problem = only(manifest={"manifest": {f"{S}/a": [f"{D}/x/"]}, "max_in_flight": 5})
    assert problem.startswith("manifest holds a whole conf (manifest, max_in_flight): give only the manifest here")


def test_an_editor_that_was_opened_and_left_is_no_second_manifest():
    assert plan(manifest={}, manifest_b64gz=packed({f"{S}/a": [f"{D}/x/"]}))


def test_an_empty_manifest_is_told_where_the_other_one_is_faulty_too():
    assert [p.split(":")[0] for p in refused(manifest={}, manifest_b64gz="x")] == [
        "manifest_b64gz cannot be decoded",
        "manifest is empty",
    ]


@pytest.mark.parametrize("field", ["manifest_uri", "manifest_b64gz"])
def test_an_empty_text_is_no_second_manifest(field: str):
    manifest = {f"{S}/a": [f"{D}/x/"]}
    assert plan(**{"manifest": manifest, field: ""}) == plan(manifest=manifest)
    assert "(given: none)" in only(**{field: ""})


def test_within_one_project_a_destination_inside_its_source_and_a_copy_onto_itself_are_refused():
    inside = only(manifest={f"{S}/run/": [f"{S}/run/copy/"]}, same_project="allow")
    assert "lies inside its source" in inside
    itself = only(manifest={f"{S}/run/a": [f"{S}/run/"]}, same_project="allow")
    assert "lies in this very folder already" in itself
    assert plan(manifest={f"{S}/run/a": [f"{S}/copy/"]}, same_project="allow")


def test_all_refusals_come_at_once():
    problems = refused(
        manifest={
            "nonsense": ["also nonsense", f"{D}/x"],
            f"{S}/one/f": [f"{D}/x/"],
            f"{S}/two/f": [f"{D}/x/"],
            f"{S}/three": [],
            f"{S}/four": "no list",
        }
    )
    assert len(problems) == 7
    places = [f"{S}/one/f”][0]", f"{S}/two/f”][0]", f"{S}/three”]", f"{S}/four”]", "nonsense”]:", "nonsense”][0]"]
    assert all(any(place in problem for problem in problems) for place in places)


def test_places_of_long_sources_stay_apart():
    long = f"{S}/{'deep/' * 200}"
    problems = refused(manifest={f"{long}{end}": [] for end in ("one", "two")})
    assert len(set(problems)) == 2


def test_nothing_in_a_refusal_moves_the_cursor_or_starts_a_line_of_its_own():
    problem = only(manifest={f"{S}/a\nmanifest: all good\x1b[2K": []})
    assert problem.isprintable()
    assert "\\n" in problem


@pytest.mark.parametrize("conf", [{}, {"manifest": None}])
def test_no_manifest_is_refused(conf):
    assert "give exactly one of manifest, manifest_b64gz and manifest_uri (given: none)" in only(**conf)


def test_two_manifests_are_refused():
    assert "(given: manifest, manifest_b64gz)" in only(manifest={f"{S}/a": [f"{D}/x/"]}, manifest_b64gz="x")


def test_wrong_options_unknown_fields_and_a_missing_manifest_are_told_together():
    problems = refused(max_in_flight=0, poll_second=3, verify="md5", same_project=1)
    assert len(problems) == 5
    assert any(p.startswith("poll_second: this field is not known") for p in problems)
    assert any(p.startswith("max_in_flight: “0”") for p in problems)


@pytest.mark.parametrize(
    "text",
    [
        "%%%",
        "aGVsbG8=",
        base64.b64encode(gzip.compress(b"{}", mtime=0)[:-6]).decode(),
        "H4sI",
        "ü",
        base64.b64encode(b"").decode(),
    ],
)
def test_a_packed_manifest_that_cannot_be_unpacked_is_refused_in_words(text):
    assert "manifest_b64gz" in only(manifest_b64gz=text)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe\xff", b"[" * 100_000, b"NaN x"])
def test_a_packed_manifest_that_is_no_json_is_refused_in_words(data):
    assert "manifest_b64gz does not hold JSON" in only(manifest_b64gz=packed(data))


def test_a_bomb_is_refused_without_unpacking_it_whole():
    bomb = packed(b" " * (65 * 1024 * 1024))
    assert len(bomb) < 100_000
    assert "use manifest_uri" in only(manifest_b64gz=bomb)


def test_a_source_that_stands_twice_in_the_text_is_refused_and_not_lost():
    text = f'{{"{S}/a": ["{D}/x/"], "{S}/a": ["{D}/y/"]}}'
    assert "stands there twice" in only(manifest_b64gz=packed(text.encode()))
    with pytest.raises(RequestError, match="stands there twice"):
        parse_json(text.encode(), "FILE")


@pytest.mark.parametrize(
    "uri", ["s3://u:secret@b/m.json", "s3://b/m.json?X-Amz-Signature=secret", "m.json", "s3://b/m#secret", "s3://[secret/m"]
)  # fmt: skip
def test_a_manifest_uri_with_anything_secret_in_it_is_refused_without_repeating_it(uri):
    problem = only(manifest_uri=uri)
    assert problem.startswith("manifest_uri: ")
    assert "secret" not in problem.replace("s3://[secret/m", "")


def test_refusals_of_ten_thousand_sources_take_seconds_at_most():
    manifest = {f"{S}/run/f{n}": [f"{D}/x/"] for n in range(10_000)}
    assert refusals(manifest, "manifest", "refuse") == []
