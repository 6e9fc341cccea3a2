"""wherry's own plugins: none is broken, and each says what it is."""

import pytest

from wherry.host import KINDS, Host


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load(plugins=())


def test_none_is_skipped(host):
    assert host.commands() == {}
    assert host.skipped == []


def test_the_core_brings_data_metrics_and_reports(host):
    core = next(info for info in host.plugins if info.name == "builtins")
    assert host.provided(core).keys() == {"datasets", "metrics", "reports"}
    assert {"top1", "agreement"} <= host.metrics.keys()
    assert {"json", "html", "markdown", "csv", "junit"} <= host.reports.keys()


def test_every_descriptor_has_a_line(host):
    for kind in KINDS.keys() - {"commands"}:
        for name, descriptor in getattr(host, kind).items():
            assert descriptor.name == name
            assert descriptor.description, f"{kind} {name}"
            assert "\n" not in descriptor.description, f"{kind} {name}"
            assert len(descriptor.description) < 100, f"{kind} {name}"


def test_each_stage_has_somebody_for_every_backend(host):
    assert host.backends
    for name in host.backends:
        host.worker("wherry_convert", name)
        host.worker("wherry_calibrate", name)
        host.worker("wherry_profile", name)
    for name in host.passes:
        host.worker("wherry_optimize", name)
