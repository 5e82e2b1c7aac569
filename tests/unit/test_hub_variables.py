"""Variables of the hub's client that cannot be used are named; a model that is no hub's does without them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import minigpt
tokenizer = minigpt.Tokenizer.from_pretrained()  # the bundled one, for which no hub is asked
try:
    minigpt.Tokenizer.from_pretrained("gpt2")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "HF_ENDPOINT",
            "http://[::1",
            "HF_ENDPOINT is 'http://[::1': Invalid IPv6 URL; set it to an address",
        ),
        (
            "HF_ENDPOINT",
            "http://localhost:99999",
            "HF_ENDPOINT is 'http://localhost:99999': Port out of range",
        ),
        (
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "x",
            "HF_HUB_DOWNLOAD_TIMEOUT is 'x': set it to a whole number of seconds",
        ),
        ("HF_HUB_ETAG_TIMEOUT", "-1", "HF_HUB_ETAG_TIMEOUT is '-1': set it to a whole number of seconds"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(name: str, value: str, message: str) -> None:
    """In a process of its own, for the client reads them when it is imported."""
    run = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, name: value}, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(message)
