"""The pages and their JSON: what they show of runs, targets, comparisons, boards."""

import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from served import days

from wherry.filelock import hold
from wherry.records.progress import EVENTS_FILE, ProgressFile
from wherry.records.requests import RUNNING

ADDRESSES = ("/", "/targets", "/compare", "/boards", "/sign-in", "/live")


class Page(HTMLParser):
    """The links, the texts and the attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text += f" {data}"


def page(answer, status=200) -> Page:
    assert answer.status_code == status, answer.text
    return Page(answer.text)


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_page_renders_without_any_run(client, address):
    assert client.get(address).status_code == 200


def test_the_list_is_paged_and_its_filters_stay(client, records):
    ids = days(records, 7, tag="nightly")
    first = page(client.get("/?limit=3&tag=nightly"))
    shown = [link for link in first.links if link.startswith("/runs/")]
    assert shown == [f"/runs/{run_id}" for run_id in reversed(ids[-3:])]
    (following,) = [link for link in first.links if "before=" in link]
    second = page(client.get(following))
    assert [link for link in second.links if link.startswith("/runs/")] == [
        f"/runs/{run_id}" for run_id in reversed(ids[1:4])
    ]
    assert ("input", {"type": "search", "name": "tag", "value": "nightly"}) in second.tags
    assert "No run is like that" in page(client.get("/?device=orin")).text
    assert "No run is like that" in page(client.get("/?since=2026-11-08")).text
    assert client.get("/?since=2026-11-07").text.count('name="base"') == 1


def test_the_list_as_json_leads_from_page_to_page(client, records):
    ids, found, before = days(records, 5), [], ""
    while before is not None:
        answer = client.get("/api/runs", params={"limit": 2, "before": before}).json()
        found += [run["run_id"] for run in answer["runs"]]
        before = answer["next"]
    assert found == ids[::-1]
    assert answer["runs"][0]["started"] == "2026-11-01T04:05:00+00:00"


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=501", "limit=x", "limit=-1", "limit=٣"),
        *("limit=00000000199999", f"limit=000000001{'9' * 40}", f"limit={'9' * 5000}"),
        *("since=yesterday", "since=0001-01-01T00:00:00%2B14:00", "since=9999-12-31T23:59-14:00"),
    ],
)
def test_what_cannot_be_asked_is_told(client, query):
    assert client.get(f"/api/runs?{query}").status_code == 400
    assert client.get(f"/?{query}").status_code == 400


def test_a_run_is_its_report_in_the_sites_frame(client, make, records):
    record = make.rich()
    records.save(record)
    run_id = record.values["run_id"]
    found = page(client.get(f"/runs/{run_id}"))
    assert {"/", "/targets", "/compare", "/boards", f"/api/runs/{run_id}"} <= {*found.links}
    for result in record.values["results"]:
        assert result["variant"] in found.text
    assert client.get(f"/api/runs/{run_id}").json() == record.values
    data = re.search(r'id="data">(.*?)</script>', client.get(f"/runs/{run_id}").text, re.S)
    assert json.loads(data[1])["worths"]
    assert client.get("/runs/last").headers["location"] == f"/runs/{run_id}"
    assert not any("style" in attributes for _, attributes in found.tags)


def test_a_run_leads_to_the_comparison_with_the_one_before_of_its_manifest(client, make, records):
    ids = days(records, 2)
    records.save(make.record(make.result(), run_id="20261103-other", manifest="other.yaml"))
    assert not [link for link in page(client.get(f"/runs/{ids[0]}")).links if "base=" in link]
    (link,) = [link for link in page(client.get(f"/runs/{ids[1]}")).links if "base=" in link]
    found = page(client.get(link))
    assert "+100.0 %" in found.text and "worse" in found.text
    values = client.get(f"/api{link}").json()
    assert values["summary"]["worse"] == 1 and values["base"]["run_id"] == ids[0]


def test_a_run_in_a_folder_whose_name_is_no_utf_8_has_its_json(client, make, records):
    record = make.record(make.result(), manifest="/gr\udcf6\udcdfe/m.yaml")
    records.save(record)
    run_id = record.values["run_id"]
    assert client.get(f"/api/runs/{run_id}").json() == record.values
    for address in ("/", f"/runs/{run_id}", "/api/runs", f"/compare?base={run_id}&new={run_id}"):
        assert client.get(address).status_code == 200


def test_a_run_whose_progress_cannot_be_read_takes_no_other_away(client, site, caplog):
    for run_id in ("20261124-000000-0001", "20261124-000000-0002"):
        folder = site.home / "runs" / run_id
        folder.mkdir(parents=True)
    (folder / EVENTS_FILE).write_text("no JSON\n")
    good = site.home / "runs" / "20261124-000000-0001"
    with hold(folder / RUNNING), hold(good / RUNNING), ProgressFile(good) as progress:
        progress.begin(SimpleNamespace(steps={}), good.name, tag=None, manifest="/m.yaml")
        assert f"/runs/{good.name}" in page(client.get("/")).links
        assert [run["run_id"] for run in client.get("/api/live").json()["runs"]] == [good.name]
        for _ in range(2):
            assert client.get(f"/api/live/{folder.name}").status_code == 503
    assert "cannot be read" in caplog.text


def test_the_report_is_a_file_to_keep(client, make, records):
    record = make.rich()
    records.save(record)
    answer = client.get(f"/runs/{record.values['run_id']}/report.html")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "default-src 'none'" in html.unescape(answer.text)


def test_a_comparison_takes_two_runs_and_no_files(client, make, records, tmp_path):
    days(records, 1)
    (tmp_path / "secret.json").write_text("{}")
    for name in (f"{tmp_path}/secret.json", "secret.json", "best"):
        answer = client.get("/api/compare", params={"base": name, "new": "last"})
        assert answer.status_code == 404
        assert "no run named" in answer.json()["error"]
    assert client.get("/api/compare?base=last").status_code == 400
    assert page(client.get("/compare?new=last")).text.count("Figure by figure") == 0


def test_a_trend_joins_only_like_measurements(client, make, records):
    days(records, 2)
    latency = {"timed_by": "trtexec", "clean": False}
    records.save(make.record(make.result(ms=3.0, latency=latency), run_id="20261124-x"))
    records.save(
        make.record(make.result(ms=None), run_id="20261125-y", started="2026-11-25T00:00:00+00:00")
    )
    (target,) = client.get("/api/targets").json()["targets"]
    assert target["runs"] == 4
    values = client.get(f"/api/targets/{target['target_key']}").json()
    assert [point["series"] for point in values["points"]] == [0, 0, 1, None]
    assert [kind["timed_by"] for kind in values["series"]] == ["agent", "trtexec"]
    found = page(client.get(f"/targets/{target['target_key']}"))
    assert "+100.0 %" in found.text and "another clock or board" in found.text
    assert "not clean" in found.text and "failed" in found.text
    metric = client.get(f"/api/targets/{target['target_key']}?metric=top1&limit=1").json()
    assert "top1" in metric["metrics"] and len(metric["points"]) == 1


def test_a_trend_keeps_networks_apart_and_marks_another_model(client, make, records):
    """Two manifests whose targets have one key, and a model that was trained anew within one."""
    for day, ms, manifest, model in (
        (1, 5.0, "/ci/big.yaml", "11"),
        (2, 1.0, "/ci/tiny.yaml", "33"),
        (3, 6.0, "/ci/big.yaml", "22"),
        (4, 1.1, "/ci/tiny.yaml", "33"),
    ):
        changes = {"started": f"2026-11-0{day}T00:00:00+00:00", "manifest": manifest}
        changes |= {"model": {"digest": model * 32}}
        records.save(make.record(make.result(ms=ms), run_id=f"2026110{day}-x", **changes))
    (target,) = client.get("/api/targets").json()["targets"]
    values = client.get(f"/api/targets/{target['target_key']}").json()
    assert [point["series"] for point in values["points"]] == [0, 1, 0, 1]
    assert [kind["manifest"] for kind in values["series"]] == ["/ci/big.yaml", "/ci/tiny.yaml"]
    found = page(client.get(f"/targets/{target['target_key']}"))
    # each is compared with the one before of its own manifest
    assert "+20.0 %" in found.text and "+10.0 %" in found.text and "-80" not in found.text
    assert "/compare?base=20261101-x&new=20261103-x" in found.links
    assert found.text.count("another model") == 1 and "another clock" not in found.text
    assert "/ci/tiny.yaml" in found.text


def test_what_is_not_there_is_not_found_in_its_own_form(client):
    for address in ("/runs/nope", "/targets/00", "/nothing", "/static/0/style.css", "/runs/..%2fx"):
        assert client.get(address).status_code == 404
    for address in ("/api/runs/nope", "/api/targets/00", "/api/live/nope"):
        answer = client.get(address)
        assert answer.status_code == 404 and answer.json()["error"]


def test_boards_are_those_of_the_inventory_and_of_the_records(client, make, records, tmp_path):
    (tmp_path / "devices.yaml").write_text("devices:\n  bench: {local: {}, tags: [desk]}\n")
    (run_id,) = days(records, 1)
    boards = {board["name"]: board for board in client.get("/api/boards").json()["boards"]}
    assert {*boards} == {"local", "bench", "pi4"}
    assert boards["bench"]["tags"] == ["desk"] and boards["bench"]["probed"] is None
    assert boards["pi4"]["transport"] is None and boards["pi4"]["last_run"] == run_id
    assert "bench" in page(client.get("/boards")).text
    (tmp_path / "devices.yaml").write_text("devices: 3\n")
    assert "devices must be a mapping" in page(client.get("/boards"), 503).text


def test_files_may_be_kept_and_their_address_changes_with_them(client):
    found = page(client.get("/"))
    addresses = [
        a.get("src") or a.get("href") for tag, a in found.tags if tag in {"script", "link"}
    ]
    for address in filter(None, addresses):
        answer = client.get(address)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
    assert "no-store" in client.get("/").headers["cache-control"]


def test_a_database_that_is_gone_is_told(client, site, monkeypatch):
    from wherry.errors import StoreError

    def gone(*_args, **_names):
        raise StoreError("it is gone", where="postgresql://bench/", remedy="Start it.")

    monkeypatch.setattr(site.records, "runs", gone)
    found = page(client.get("/"), 503)
    assert "it is gone" in found.text and "Start it." in found.text
    assert client.get("/api/runs").status_code == 503
