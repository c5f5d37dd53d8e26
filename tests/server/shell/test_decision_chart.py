"""The picture of what the balance chose while a load ran."""

import xml.etree.ElementTree as ElementTree

import pytest

from server.shell.cli import main
from server.shell.decision_chart import Decisions, draw_decisions


def sample(time_s, *, ar, wide, running=2, price=0.1):
    return Decisions(time_s, running, 0, price, {0: ar, 4: wide})


def bars(picture):
    svg = "{http://www.w3.org/2000/svg}"
    found = [r.attrib for r in ElementTree.fromstring(picture).iter(f"{svg}rect")]
    return [(r["fill"], float(r["height"])) for r in found if r.get("width", "%")[-1].isdigit()]


def test_each_stretch_shows_the_shares_of_its_own_rounds():
    samples = [
        sample(0.0, ar=0, wide=0),
        sample(1.0, ar=3, wide=1),
        sample(2.0, ar=3, wide=1),
        sample(3.0, ar=3, wide=3, price=0.4),
    ]
    picture = draw_decisions(samples)
    first, second, third = bars(picture)[:3]
    assert first[1] == 3 * second[1]
    assert third == (second[0], first[1] + second[1])
    assert "width 4" in picture
    assert "AR" in picture
    assert "0.4" in picture
    assert "3.0 s" in picture


def test_a_load_without_choices_is_no_picture():
    with pytest.raises(ValueError, match="chose nothing"):
        draw_decisions([sample(0.0, ar=0, wide=0)])
    with pytest.raises(ValueError, match="chose nothing"):
        draw_decisions([])


def test_bench_draws_what_a_model_chose(golden, tmp_path):
    out = tmp_path / "decisions.svg"
    flags = ["--device", "cpu", "--dtype", "float32", "--num-threads", "1"]
    flags += ["--kv-cache-memory", "8MiB", "--prompt-tokens", "4", "--answer-tokens", "24"]
    flags += ["--num-requests", "4", "--concurrency", "2", "--decisions", str(out)]
    assert main(["bench", str(golden / "nemotron_labs_diffusion"), *flags]) == 0
    picture = out.read_text()
    assert "running" in picture
    assert len(bars(picture)) > 3
