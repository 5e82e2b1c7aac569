"""What a run has written of its steps, it finds again."""

import json

import pytest

from minigpt.training.report import METRICS, Report


def lines(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def begin(folder, step):
    report = Report(folder, tell=lambda text: None, logger=None)
    report.begin(step, steps=9)
    report.bar.close()
    report.file.close()


def test_steps_that_will_be_run_again_are_forgotten(tmp_path):
    (tmp_path / METRICS).write_text("".join(f'{{"step": {i}, "loss": 1.0}}\n' for i in range(1, 6)) + '{"st')
    begin(tmp_path, step=3)
    assert lines(tmp_path / METRICS) == [1, 2, 3]


@pytest.mark.parametrize("damage", [b'{"step": 2, "lo\x00s', b"\xff\xfe", b""])
def test_a_damaged_line_is_left_out_and_named(tmp_path, damage):
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.warns(UserWarning, match=r"metrics.jsonl: line 2 is damaged, and left out"):
        begin(tmp_path, step=3)
    assert lines(tmp_path / METRICS) == [1, 3]
