"""Alternatives of a runtime: what leads to the next one, and what does not."""

from __future__ import annotations

import pytest

from wherry.errors import EnvironmentError_, UnfitError
from wherry.requirements import Requirements
from wherry_devices.alternatives import Alternatives

BEST, SECOND = Requirements(("best",)), Requirements(("second",))


def answering(**errors):
    """A lock that raises what is given for a package."""

    def lock(requirements):
        (name,) = requirements.packages
        if name in errors:
            raise errors[name]
        return f"lock of {name}"

    return lock


def test_what_does_not_fit_leads_to_the_next():
    lock = answering(best=UnfitError("best has no wheel"))
    assert Alternatives().choose("key", (BEST, SECOND), lock) == (SECOND, "lock of second")


def test_a_network_that_fails_makes_no_other_choice():
    chosen = Alternatives()
    with pytest.raises(EnvironmentError_, match="index does not answer"):
        chosen.choose(
            "key", (BEST, SECOND), answering(best=EnvironmentError_("the index does not answer"))
        )
    assert chosen.choose("key", (BEST, SECOND), answering()) == (BEST, "lock of best")


def test_a_choice_holds():
    chosen = Alternatives()
    lock = answering(best=UnfitError("best has no wheel"))
    chosen.choose("key", (BEST, SECOND), lock)
    assert chosen.choose("key", (BEST, SECOND), answering()) == (SECOND, "lock of second")
    assert chosen.choose("another", (BEST, SECOND), answering()) == (BEST, "lock of best")


def test_the_remedy_is_of_what_says_the_most():
    lock = answering(
        best=UnfitError("best needs Python >=3.14, and the board has 3.8", remedy="Update."),
        second=UnfitError("there is no numpy", remedy="apt install python3-numpy."),
    )
    with pytest.raises(UnfitError, match=r"best needs Python.*; there is no numpy") as caught:
        Alternatives().choose("key", (BEST, SECOND), lock)
    assert caught.value.remedy == "apt install python3-numpy."
