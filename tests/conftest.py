"""A skip is loud: in CI, skipping a test that needs nothing from outside is a failure. Ctrl-C works everywhere."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: nothing here depends on how long an example takes.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config):
    # Shells have it ignored in what runs in the background, and processes that tests start inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_sessionfinish(session, exitstatus):
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    needless = [report for report in skipped if "needs" not in report.longrepr[2]]
    if os.environ.get("CI") and needless:
        reporter.write_line(f"{len(needless)} tests skipped that need nothing from outside", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
