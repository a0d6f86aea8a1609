"""What the tests on several nodes share; nodes.py has the clusters themselves."""

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the terminal at once, also where pytest captures what tests print."""
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    assert terminal is not None
    write_line: Callable[[str], None] = terminal.write_line
    return write_line
