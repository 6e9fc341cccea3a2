from wherry.testing import BackendSuite
import pytest

@pytest.mark.backend
@pytest.mark.usefixtures("wherry_home")
class TestMace(BackendSuite):
    name = "mace"
