"""Runs made sick on purpose, trained for real: the doctor tells what was done to them."""

import pytest
from click.testing import CliRunner

from sslzoo.cli import cli
from sslzoo.report.doctor import diagnose
from sslzoo.report.records import read

OWN = """
import torch
from torch import nn

from sslzoo import Signal, hookimpl


class Own(nn.Module):
    \"\"\"The student's own tokens of the target patches, their gradient not stopped.\"\"\"

    def __init__(self, student) -> None:
        super().__init__()
        self.student = [student]
        self.outputs = {"patch": Signal("patch", student.encoder.width)}

    def forward(self, batch, reading, at):
        group = batch.groups["image"]
        x = self.student[0].encoder(group.pixels.flatten(0, 1)).patches
        return {"patch": group.mask.target.flat(group.mask.target.take(group.mask.rows(x)))}

    def after_step(self, student, at):
        pass


@hookimpl
def sslzoo_targets():
    return {"own": Own}
"""
SHORT = ["run.steps=400", "data.length=3000", "run.monitor_every=50 steps"]
SHORT += ["optim.lr={warmup: {steps: 100, from: 1.0e-4, to: 1.0e-3, then: {cosine: 1.0e-5}}}"]
SICK = {
    "own": (["targets={own: {use: own}}", "losses.guess.target=own.patch"], "full collapse"),
    "momentum-0": (["targets.teacher.momentum=0.0", "run.steps=900"], "dimensional collapse"),  # not plain at 400 steps
    "rate": (["optim.lr=0.3"], "full collapse"),
    "momentum-1": (["targets.teacher.momentum=1.0"], "teacher frozen"),
    "well": (["targets.teacher.momentum=0.99"], "healthy"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SICK)
def test_the_doctor_tells_what_was_done(name, tmp_path):
    sets, verdict = SICK[name]
    (tmp_path / "own.py").write_text(OWN)
    words = [
        "train",
        "tiny/ijepa",
        "--plugin",
        str(tmp_path / "own.py"),
        "--out",
        str(tmp_path / "run"),
        "--no-evaluate",
    ]
    for one in (*SHORT, *sets):
        words += ["--set", one]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    found = diagnose(read(tmp_path / "run"))
    assert found.verdict == verdict, found.evidence
