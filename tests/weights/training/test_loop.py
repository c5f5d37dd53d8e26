import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from tests.weights.training.runs import SCHEDULE, TINY_ESO_LM, TINY_EVO
from weights.training.data.text import Windows
from weights.training.loop import LOG_FILE, STATE_FILE, Trainer

# A text with much to learn: each token follows from the one before.
TEXT = (torch.arange(4000) * 7 % 50).int()
HELD_OUT = TEXT[:128].long().view(4, 32)


def trainer(folder, scale=TINY_EVO, **changes):
    folder.mkdir(exist_ok=True)
    return Trainer(
        scale.build(64, torch.Generator().manual_seed(1)),
        replace(SCHEDULE, **changes),
        folder,
        seed=1,
        minutes=60,
        precision=torch.float32,
    )


def windows(seed=1):
    return Windows(TEXT, SCHEDULE.length, SCHEDULE.batch_size, seed)


def logged(folder, kind):
    lines = map(json.loads, (folder / LOG_FILE).read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


class StoppedWindows:
    """Windows during whose batch of a step the process is told to stop."""

    def __init__(self, step, number):
        self.windows = windows()
        self.step = step
        self.number = number

    def batch(self, step):
        if step == self.step:
            os.kill(os.getpid(), self.number)
        return self.windows.batch(step)

    def generator(self, step, *, device):
        return self.windows.generator(step, device=device)


@pytest.mark.parametrize("scale", [TINY_EVO, TINY_ESO_LM], ids=["evo", "eso-lm"])
def test_held_out_losses_fall(tmp_path, scale):
    trainer(tmp_path, scale, num_steps=120).run(windows(), HELD_OUT)
    first, *_, last = logged(tmp_path, "held_out")
    parts = set(first) - {"kind", "step", "elapsed_s"}
    assert len(parts) == 2
    assert all(last[part] < 0.8 * first[part] for part in parts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("scale", [TINY_EVO, TINY_ESO_LM], ids=["evo", "eso-lm"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path, scale, number):
    whole = trainer(tmp_path / "whole", scale)
    assert whole.run(windows(), HELD_OUT)
    stopped = trainer(tmp_path / "cut", scale)
    assert not stopped.run(StoppedWindows(17, number), HELD_OUT)
    assert stopped.step == 18
    resumed = trainer(tmp_path / "cut", scale)
    resumed.restore()
    assert resumed.run(windows(), HELD_OUT)
    with whole.averaged() as expected, resumed.averaged() as found:
        for name, value in expected.named_parameters():
            assert torch.equal(dict(found.named_parameters())[name], value), name
    steps = [line["step"] for line in logged(tmp_path / "cut", "step")]
    assert steps == list(range(5, 41, 5))


def test_what_was_logged_after_the_saved_state_is_dropped(tmp_path):
    cut = trainer(tmp_path, num_steps=10)
    cut.run(windows(), HELD_OUT)
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write(json.dumps({"kind": "step", "step": 15}) + "\n")
    trainer(tmp_path).restore()
    assert [line["step"] for line in logged(tmp_path, "step")] == [5, 10]


def test_time_ends_a_run(tmp_path):
    run = Trainer(
        TINY_EVO.build(64, torch.Generator().manual_seed(1)),
        replace(SCHEDULE, num_steps=10**9),
        tmp_path,
        seed=1,
        minutes=0.2 / 60,
        precision=torch.float32,
    )
    assert run.run(windows(), HELD_OUT)
    assert run.elapsed_s >= 0.2


def test_a_state_of_other_sizes_is_refused(tmp_path):
    trainer(tmp_path, num_steps=1).run(windows(), HELD_OUT)
    other = trainer(tmp_path, replace(TINY_EVO, hidden_size=16, num_heads=2))
    with pytest.raises(ValueError, match="other sizes"):
        other.restore()


def test_nothing_to_resume_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        trainer(tmp_path).restore()


def test_a_state_is_replaced_in_one_move(tmp_path):
    run = trainer(tmp_path, num_steps=1)
    run.run(windows(), HELD_OUT)
    before = (tmp_path / STATE_FILE).stat().st_ino
    run.save()
    assert (tmp_path / STATE_FILE).stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def test_the_average_is_of_the_weights_and_leaves_them_as_they_were(tmp_path):
    run = trainer(tmp_path)
    run.run(windows(), HELD_OUT)
    trained = [value.detach().clone() for value in run.model.parameters()]
    with run.averaged(rounded_to=torch.float16) as model:
        averaged = [value.detach().clone() for value in model.parameters()]
    assert all(torch.equal(value, value.half().float()) for value in averaged)
    assert not all(torch.equal(*pair) for pair in zip(trained, averaged, strict=True))
    assert all(torch.equal(*pair) for pair in zip(trained, run.model.parameters(), strict=True))
