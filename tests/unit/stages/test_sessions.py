"""Sessions with this host, and what data is read: once a run, for all steps that use them."""

from __future__ import annotations

import threading

import numpy as np

from wherry.data.arrays import ArrayDataset


def test_the_probe_and_the_parity_checks_share_a_session_and_none_is_left(lab) -> None:
    assert lab.statuses(lab.run(jobs=1)) == ["ok"] * 4
    assert lab.bench.sessions == 2, "one without the lease, then one with it"
    assert lab.bench.beside_the_lease == [0]
    assert lab.bench.open_sessions == 0


def test_a_session_whose_agent_was_ended_is_replaced(lab) -> None:
    lab.bench.ended = True
    assert lab.statuses(lab.run(jobs=1)) == ["ok"] * 4
    assert (lab.bench.sessions, lab.bench.open_sessions) == (3, 0)


def test_a_session_in_which_something_failed_is_not_used_again(lab) -> None:
    lab.bench.error = 1.0
    services = lab.prepare().services
    (device,) = {row.target.device for row in services.plan.rows}
    for fails in (True, False, False):
        try:
            with services.session(device, lease=False):
                if fails:
                    raise ValueError
        except ValueError:
            assert lab.bench.open_sessions == 0
    assert (lab.bench.sessions, lab.bench.open_sessions) == (2, 1)
    services.release()
    assert lab.bench.open_sessions == 0


def test_data_of_one_source_is_read_once_by_all_who_ask_at_once(lab) -> None:
    services = lab.prepare().services
    calls, begun, found = [], threading.Barrier(4), []

    def load() -> ArrayDataset:
        calls.append(1)
        if len(calls) == 1:
            raise OSError
        return ArrayDataset("made", {"": np.zeros((2, 3), np.float32)})

    def ask() -> None:
        begun.wait()
        try:
            found.append(services.dataset("npz", "{}", load))
        except OSError:
            found.append(None)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 2, "what failed is tried again, and what was read is kept"
    assert found.count(None) == 1
    assert len({id(dataset) for dataset in found if dataset is not None}) == 1
    services.dataset("npz", '{"path": "other"}', load)
    assert len(calls) == 3
