"""The conformance kit for plugin authors: ``pip install 'wherry[testing]'``.

A backend's author writes one test file::

    from wherry.testing import BackendSuite

    class TestMine(BackendSuite):
        name = "mine"

and runs pytest. The plugin has to be installed, as it would be by its users.
"""

import pytest

pytest.register_assert_rewrite("wherry.testing.backend")  # asserts say what they compared

from wherry.testing.backend import BackendSuite  # noqa: E402 -- after the line above, or in vain

__all__ = ["BackendSuite"]
