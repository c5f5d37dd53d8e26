import pytest

from sampler.scorer import Scorer
from server.shell.cli import main
from tests.sampler.golden_engine import GOLDEN, golden_cases


def test_a_lightning_checkpoint_becomes_a_folder_that_scores_the_golden_text(tmp_path, capsys):
    folder = tmp_path / "esolm"
    assert main(["convert", str(GOLDEN / "esolm" / "model.ckpt"), str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    tensors = golden_cases("esolm")["loglik_left_to_right"].tensors
    tokens = tensors["input_ids"][0].tolist()
    result = Scorer.load(folder).score_tokens(tokens, alpha_0=0.0)
    assert result.logprob == pytest.approx(float(tensors["logp_total"][0]), abs=1e-3)


def test_converting_what_is_not_there_is_one_sentence(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "no.ckpt"), str(tmp_path / "out")]) == 1
    assert "no.ckpt" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_cannot_score_a_text(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("abc")
    assert main(["score", str(GOLDEN / "llama"), "--text-file", str(text)]) == 1
    assert "tokenizer" in capsys.readouterr().err


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match="at most"):
        Scorer.load(GOLDEN / "esolm").score_tokens([1] * 500)
