"""Settings: where values come from, what is refused, and the list of all flags."""

import pytest
import yaml

from server.settings import Settings, SettingsError, load_settings, printable
from server.shell.cli import build_parser, main
from server.shell.flags import flag_name, given

# Adding a flag is a visible decision: it changes this list.
SETTINGS = {
    "model",
    "served_model_name",
    "revision",
    "download_dir",
    "chat_template",
    "dtype",
    "quantization",
    "mask_token_id",
    "block_length",
    "max_model_len",
    "device",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_queued_requests",
    "page_size",
    "kv_cache_memory",
    "enable_prefix_caching",
    "canvas_adapter",
    "cuda_graphs",
    "num_threads",
    "seed",
    "host",
    "port",
    "root_path",
    "forwarded_allow_ips",
    "limit_concurrency",
    "max_body_size",
    "header_timeout",
    "body_timeout",
    "write_timeout",
    "keep_alive_timeout",
    "sse_keep_alive_interval",
    "ssl_certfile",
    "ssl_keyfile",
    "api_key",
    "api_key_file",
    "allowed_origins",
    "request_timeout",
    "strict_params",
    "metrics_compat",
    "playground",
    "drain_grace",
    "shutdown_timeout",
    "log_format",
    "log_level",
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("ESTUARY_")]:
        monkeypatch.delenv(name)


def _serve_flags(*arguments):
    return given(build_parser().parse_args(["serve", *arguments]))


def test_the_list_of_settings():
    assert set(Settings.model_fields) == SETTINGS


def test_every_setting_has_a_flag_and_a_sentence_of_help(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert [name for name in SETTINGS if flag_name(name) not in text] == []
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    assert [
        name for name, field in Settings.model_fields.items() if field.description[-1] != "."
    ] == []


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(monkeypatch, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\nmax-num-seqs: 2\npage_size: 3\n")
    monkeypatch.setenv("ESTUARY_PORT", "10")
    monkeypatch.setenv("ESTUARY_MAX_NUM_SEQS", "20")
    settings = load_settings({"port": "100"}, config=file)
    assert (settings.port, settings.max_num_seqs, settings.page_size) == (100, 20, 3)
    assert settings.max_num_batched_tokens == 2048


def test_the_environment_can_name_the_file(monkeypatch, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("port: 77")
    monkeypatch.setenv("ESTUARY_CONFIG", str(file))
    assert load_settings({}).port == 77


def test_flags_are_typed_as_operators_know_them():
    settings = load_settings(
        _serve_flags(
            "some/model",
            "--served-model-name", "a", "--served-model-name", "b",
            "--kv-cache-memory", "2GiB",
            "--max-body-size", "1MB",
            "--api-key", "k1", "--api-key", "k2",
            "--strict-params",
            "--no-enable-prefix-caching",
            "--no-cuda-graphs",
            "--drain-grace", "0.5",
        )
    )  # fmt: skip
    assert settings.model == "some/model"
    assert settings.served_model_name == ("a", "b")
    assert settings.kv_cache_memory == 2 * 2**30
    assert settings.max_body_size == 10**6
    assert settings.all_api_keys() == ("k1", "k2")
    assert settings.strict_params
    assert not settings.enable_prefix_caching
    assert not settings.cuda_graphs
    assert settings.drain_grace == 0.5


def test_the_model_is_a_flag_too():
    assert _serve_flags("--model", "x") == {"model": "x"}
    assert _serve_flags("x") == {"model": "x"}
    assert _serve_flags() == {}


def test_lists_in_the_environment_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("ESTUARY_API_KEY", "k1, k2")
    monkeypatch.setenv("ESTUARY_ALLOWED_ORIGINS", "https://a.example")
    settings = load_settings({})
    assert settings.all_api_keys() == ("k1", "k2")
    assert settings.allowed_origins == ("https://a.example",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("port", "x"),
        ("max_num_seqs", "0"),
        ("kv_cache_memory", "lots"),
        ("dtype", "int3"),
        ("drain_grace", "-1"),
        ("header_timeout", "0"),
        ("root_path", "noslash"),
        ("ssl_certfile", "/only/this"),
        ("max_num_batched_tokens", "3"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        load_settings({name: value})


def test_an_unknown_environment_variable_is_refused(monkeypatch):
    monkeypatch.setenv("ESTUARY_PROT", "1")
    with pytest.raises(SettingsError, match="ESTUARY_PROT: no such setting"):
        load_settings({})


def test_what_kubernetes_adds_is_explained(monkeypatch):
    monkeypatch.setenv("ESTUARY_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(SettingsError, match="enableServiceLinks"):
        load_settings({})


def test_an_unknown_name_in_the_file_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("prot: 1")
    with pytest.raises(SettingsError, match="prot: no such setting"):
        load_settings({}, config=file)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\0"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="config"):
        load_settings({}, config=file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        load_settings({}, config=tmp_path / "none.yaml")


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--prot", "1"])
    assert ended.value.code == 2
    assert "--prot" in capsys.readouterr().err


def test_a_wrong_setting_ends_the_command_with_a_sentence(capsys):
    assert main(["serve", "--port", "x"]) == 2
    assert capsys.readouterr().err.startswith("estuary: port: ")


def test_the_printed_configuration_masks_keys_and_can_be_read_back(capsys, tmp_path):
    assert main(["serve", "m", "--api-key", "geheim", "--port", "9", "--print-config"]) == 0
    text = capsys.readouterr().out
    values = yaml.safe_load(text)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert "geheim" not in text
    assert (values["model"], values["port"]) == ("m", 9)
    assert set(values) == SETTINGS
    assert load_settings({}, config=file).port == 9


def test_keys_are_not_in_the_representation():
    settings = load_settings({"api_key": ["geheim"]})
    assert "geheim" not in repr(settings) + str(settings) + printable(settings)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_key_file_without_keys_is_refused(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError, match="no key"):
        load_settings({"api_key_file": file}).all_api_keys()


def test_a_missing_key_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="api_key_file"):
        load_settings({"api_key_file": tmp_path / "none"}).all_api_keys()
