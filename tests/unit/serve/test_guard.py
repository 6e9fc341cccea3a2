"""Who may what: hosts, origins, headers, the token, forms, and names that want to do harm."""

import json
import logging
import re
from html.parser import HTMLParser

import pytest
from record_makers import BOARD
from served import TOKEN

from wherry.errors import UsageError
from wherry.serve import guard
from wherry.serve.guard import COOKIE, Keeper
from wherry.serve.server import read_token

HOSTILE = "</script><script>window.harmed = 1</script><img src=x onerror=window.harmed=1>\"'\u202e"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Tags(HTMLParser):
    """The elements of a page, each with the names of its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.fixture
def run_id(make, records):
    record = make.record(make.result())
    records.save(record)
    return record.values["run_id"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8420", "[::1]:8420", "192.168.1.7", "lab.local"]
)
def test_a_request_to_us_is_answered(client_of, host):
    assert client_of(hosts=["lab.local"]).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8420", "", "[::1", "1"],
)
def test_a_request_to_another_name_is_refused(client, host):
    for address in ("/", "/api/runs", "/static/0/style.css"):
        answer = client.get(address, headers={"host": host})
        assert answer.status_code == 400 and "run" not in answer.text.lower().replace("wherry", "")


NO_TAG = {"content": "{}", "headers": BEARER}
REFUSED = [
    ("GET", "/api/runs?limit=0", {}, 400),
    ("GET", "/api/runs?since=x", {}, 400),
    ("GET", "/api/runs?before=nope", {}, 404),
    ("GET", "/api/runs/nope", {}, 404),
    ("GET", "/api/targets/00", {}, 404),
    ("GET", "/api/targets/00/more", {}, 404),
    ("GET", "/api/live/nope", {}, 404),
    ("GET", "/api/compare?base=last", {}, 400),
    ("GET", "/api/compare?base=nope&new=last", {}, 404),
    ("GET", "/api/nothing", {}, 404),
    ("PUT", "/api/runs", {}, 405),
    ("DELETE", "/api/runs/last", {}, 401),
    ("DELETE", "/api/runs/nope", {"headers": BEARER}, 404),
    ("POST", "/api/runs/last/tag", {}, 401),
    ("POST", "/api/runs/last/tag", NO_TAG, 400),
    ("POST", "/api/runs/last/tag", {**NO_TAG, "content": '{"tag": 3}'}, 400),
    ("POST", "/api/runs/last/tag", {**NO_TAG, "content": "x" * 70_000}, 413),
    ("POST", "/api/boards/nope/probe", {"headers": BEARER}, 404),
    ("GET", "/api/runs", {"headers": {"host": "evil.example"}}, 400),
    ("POST", "/api/runs/last/tag", {"headers": {**BEARER, "origin": "http://evil.example"}}, 403),
]


@pytest.mark.parametrize(("method", "address", "options", "status"), REFUSED)
def test_a_script_is_told_what_is_wrong_and_what_to_do(
    client, run_id, method, address, options, status
):
    answer = client.request(method, address, **options)
    found = answer.json()
    assert (answer.status_code, set(found)) == (status, {"error", "remedy"})
    for text in found.values():
        assert isinstance(text, str) and len(text) > 5, found


def test_a_script_is_told_of_a_server_without_a_token(client, site, run_id):
    site.keeper = Keeper(None)
    answer = client.delete(f"/api/runs/{run_id}", headers=BEARER)
    assert answer.json()["remedy"].startswith("Start the server with a token")


@pytest.mark.parametrize("address", ["/", "/runs/nope", "/api/runs", "/nothing", "/boards"])
def test_every_answer_has_the_headers(client, address):
    headers = client.get(address).headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy and "script-src 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "server" not in headers


def test_refusals_have_the_headers_too(client):
    answer = client.get("/", headers={"host": "evil.example"})
    assert "frame-ancestors" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/runs/{}", "/", "/targets", "/compare?base={}&new={}"])
def test_hostile_names_are_only_text(client, make, records, path):
    result = make.result(HOSTILE, HOSTILE, HOSTILE, HOSTILE, options={HOSTILE: HOSTILE})
    values = {"tag": HOSTILE, "manifest": f"/{HOSTILE}", "host": {**make.record().values["host"]}}
    values["host"]["hostname"] = HOSTILE
    record = make.record(result, manifest_text=HOSTILE, **values)
    records.save(record)
    text = client.get(path.format(*[record.values["run_id"]] * 2)).text
    scripts = re.findall(r"<script\b([^>]*)>(.*?)</script>", text, re.S)
    for attributes, body in scripts:
        assert " src=" in attributes or 'type="application/json"' in attributes
        assert "<" not in body
    tags = Tags(text).found
    assert "img" not in {tag for tag, _ in tags}
    assert not [name for _, names in tags for name in names if name.startswith("on")]
    assert "\u202e" not in text


def test_hostile_queries_are_only_text(client, run_id):
    for address in ("/", "/targets", "/compare", f"/runs/{run_id}", "/nothing", "/runs/x"):
        for name in ("tag", "manifest", "device", "base", "new", "since", "metric"):
            text = client.get(address, params={name: HOSTILE}).text
            assert "<img" not in text and "<script>window" not in text


def test_without_a_token_nothing_can_be_changed(client, site, run_id, records):
    site.keeper = Keeper(None)
    for token in ("", TOKEN):
        assert client.post("/sign-in", data={"token": token}).status_code == 403
    assert client.delete(f"/api/runs/{run_id}", headers=BEARER).status_code == 401
    assert client.delete(
        f"/api/runs/{run_id}", headers={"authorization": "Bearer "}
    ).status_code == 401  # fmt: skip
    assert "Sign in" not in client.get("/").text
    assert records.find(run_id) == run_id


@pytest.mark.parametrize(
    "shown", ["", "mistaken", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "\udce9é"]
)
def test_another_token_opens_nothing(client, run_id, records, shown, caplog):
    answer = client.post("/sign-in", content=f"token={shown}".encode("utf-8", "surrogateescape"))
    assert answer.status_code == 403 and COOKIE not in answer.cookies
    header = f"Bearer {shown}".encode("utf-8", "surrogateescape")
    answer = client.delete(f"/api/runs/{run_id}", headers={"authorization": header})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert records.find(run_id) == run_id
    assert "has shown a wrong token" in caplog.text
    assert not shown or shown not in caplog.text


def test_the_token_is_nowhere_but_in_the_form(client, run_id, caplog):
    caplog.set_level(logging.DEBUG)
    answer = client.post("/sign-in", data={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    texts = [cookie, client.get("/").text, client.get(f"/runs/{run_id}").text, caplog.text]
    assert not any(TOKEN in text for text in texts)


def test_over_tls_the_cookie_goes_nowhere_else(client_of):
    answer = client_of("https://localhost").post("/sign-in", data={"token": TOKEN})
    assert "Secure" in answer.headers["set-cookie"]


def test_who_has_signed_in_tags_and_deletes(signed, run_id, records):
    client, proof = signed
    answer = client.post(f"/runs/{run_id}/tag", data={"tag": " best of all ", "proof": proof})
    assert answer.status_code == 303
    assert records.load("best of all").values["tag"] == "best of all"
    assert "The run has the tag best of all now." in client.get(f"/runs/{run_id}").text
    assert "The run has the tag" not in client.get(f"/runs/{run_id}").text, "it is told once"
    client.post(f"/runs/{run_id}/tag", data={"tag": "", "proof": proof})
    assert records.load(run_id).values["tag"] is None
    assert client.post(f"/runs/{run_id}/delete", data={"proof": proof}).status_code == 400
    answer = client.post(f"/runs/{run_id}/delete", data={"proof": proof, "sure": "yes"})
    assert answer.status_code == 303 and not records.runs()
    assert client.post("/sign-out", data={"proof": proof}).status_code == 303
    assert "Sign in" in client.get("/").text


def test_a_tag_that_cannot_be_one_is_refused(signed, run_id, records):
    client, proof = signed
    answer = client.post(f"/runs/{run_id}/tag", data={"tag": "last~3", "proof": proof})
    assert answer.status_code == 404 and "cannot be a tag" in answer.text
    assert records.load(run_id).values["tag"] is None


@pytest.mark.parametrize("proof", ["", "wrong"])
def test_a_form_that_is_not_ours_changes_nothing(signed, run_id, records, proof):
    client, _ = signed
    answer = client.post(f"/runs/{run_id}/delete", data={"proof": proof, "sure": "yes"})
    assert answer.status_code == 403
    assert client.post("/boards/probe", data={"name": "local", "proof": proof}).status_code == 403
    assert records.find(run_id) == run_id


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_what_comes_from_another_page_is_refused(signed, run_id, records, headers):
    client, proof = signed
    data = {"proof": proof, "sure": "yes"}
    answer = client.post(f"/runs/{run_id}/delete", data=data, headers=headers)
    assert answer.status_code == 403
    answer = client.post("/sign-in", data={"token": TOKEN}, headers=headers)
    assert answer.status_code == 403, "nor can anybody be signed in unawares"
    answer = client.delete(f"/api/runs/{run_id}", headers={**BEARER, **headers})
    assert answer.status_code == 403
    assert records.find(run_id) == run_id


def test_what_comes_from_our_own_page_is_taken(signed, run_id):
    client, proof = signed
    headers = {"origin": "http://localhost:8420", "sec-fetch-site": "same-origin"}
    data = {"proof": proof, "tag": "x"}
    assert client.post(f"/runs/{run_id}/tag", data=data, headers=headers).status_code == 303


def test_a_form_of_too_many_fields_is_refused(signed, run_id):
    client, proof = signed
    data = {"proof": proof, "tag": "x", **{f"more{i}": "" for i in range(30)}}
    assert client.post(f"/runs/{run_id}/tag", data=data).status_code == 400
    assert client.post("/sign-in", data={**data, "token": TOKEN}).status_code == 400


def test_a_session_ends(signed, site, monkeypatch):
    client, proof = signed
    later = guard.time.monotonic() + 13 * 3600
    monkeypatch.setattr(guard.time, "monotonic", lambda: later)
    assert client.post("/boards/probe", data={"name": "local", "proof": proof}).status_code == 403


def test_sessions_are_bounded():
    keeper = Keeper(TOKEN)
    for _ in range(guard._MOST_SESSIONS + 5):
        assert keeper.sign_in(TOKEN)
    assert len(keeper._sessions) == guard._MOST_SESSIONS


def test_scripts_bear_the_token(client, run_id, records):
    answer = client.post(f"/api/runs/{run_id}/tag", json={"tag": "best"}, headers=BEARER)
    assert answer.json() == {"run_id": run_id, "tag": "best"}
    assert records.find("best") == run_id
    for body in ('{"tag": 3}', "[]", "{", '{"label": "x"}', "[" * 60_000):
        answer = client.post(f"/api/runs/{run_id}/tag", content=body, headers=BEARER)
        assert answer.status_code == 400
    answer = client.post(f"/api/runs/{run_id}/tag", content="x" * 100_000, headers=BEARER)
    assert answer.status_code == 413
    assert client.delete(f"/api/runs/{run_id}", headers=BEARER).json() == {"run_id": run_id}
    assert client.delete(f"/api/runs/{run_id}", headers=BEARER).status_code == 404


def test_a_cookie_opens_nothing_for_scripts(signed, run_id):
    client, _ = signed
    assert client.delete(f"/api/runs/{run_id}").status_code == 401


def test_a_board_is_probed_only_on_request_and_with_the_token(client, signed, site, monkeypatch):
    asked = []

    def probing(names, _host):
        asked.extend(names)
        assert client.post("/api/boards/local/probe", headers=BEARER).status_code == 409
        return {"local": {"facts": {"in_use_by": HOSTILE}, "error": ""} | BOARD}

    monkeypatch.setattr("wherry.cli.devices.devices_probe", probing)
    client.get("/boards")
    assert client.post("/api/boards/local/probe").status_code == 401
    assert client.post("/api/boards/nope/probe", headers=BEARER).status_code == 404
    assert asked == []
    _, proof = signed
    data = {"name": "local", "proof": proof}
    assert client.post("/boards/probe", data=data).status_code == 303
    assert asked == ["local"]
    assert "Raspberry Pi 4" in client.get("/boards").text
    assert json.loads(client.get("/api/boards").text)["boards"][0]["probed"]["cores"] == 4


def test_a_token_that_could_be_guessed_is_refused():
    with pytest.raises(UsageError, match="15 characters"):
        Keeper("x" * 15)


def test_the_token_comes_from_a_file_of_ones_own_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(UsageError, match="others may read") as error:
        read_token(file, "SOME_TOKEN")
    assert "chmod 600" in str(error.value) and TOKEN not in str(error.value)
    file.chmod(0o600)
    assert read_token(file, "SOME_TOKEN") == TOKEN
    monkeypatch.setenv("SOME_TOKEN", "of the environment")
    assert read_token(None, "SOME_TOKEN") == "of the environment"
    assert read_token(None, "SOME_TOKEN") is None, "what is started later cannot read it"
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "none", "SOME_TOKEN")
