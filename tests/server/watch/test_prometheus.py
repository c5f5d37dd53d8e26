"""A real Prometheus scrapes a running server and answers what dashboards and alerts ask."""

import json
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from server.serve import listen
from server.settings import load_settings
from tests.server.test_serve import WAITS_S, running_server

DEPLOY = Path(__file__).parents[3] / "deploy"
PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus"),
]
# What the Gateway API inference extension reads of a model server, with the types it asks for.
GATEWAY = {
    "vllm:num_requests_waiting": "gauge",
    "vllm:num_requests_running": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:cache_config_info": "gauge",
}


def _free_port():
    with listen(load_settings({"port": 0})) as bound:
        return bound.getsockname()[1]


def _configuration(folder, target):
    """The shipped configuration, more often and from here."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    shutil.copy(DEPLOY / "prometheus" / "alerts.yaml", folder)
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def _running_prometheus(folder, target):
    port = _free_port()
    command = [PROMETHEUS, f"--config.file={_configuration(folder, target)}",
               f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAITS_S) as client:
                yield client
        finally:
            process.terminate()
            process.wait(WAITS_S)


def _ask(client, path, **parameters):
    try:
        answer = client.get(f"/api/v1/{path}", params=parameters)
    except httpx.TransportError:
        return None
    return answer.json()["data"] if answer.status_code == 200 else None


def _value(client, query):
    found = _ask(client, "query", query=query)
    return float(found["result"][0]["value"][1]) if found and found["result"] else None


def _wait_for_value(client, query, wanted):
    deadline_s = time.monotonic() + WAITS_S
    while (seen := _value(client, query)) != wanted:
        assert time.monotonic() < deadline_s, (query, seen)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """Prometheus, after it has seen three requests of a server."""
    with running_server() as (_, address):
        for prompt in ("x", "x", "trace"):
            httpx.post(f"{address}/v1/completions", json={"prompt": prompt}).raise_for_status()
        target = address.removeprefix("http://")
        with _running_prometheus(tmp_path_factory.mktemp("prometheus"), target) as client:
            _wait_for_value(client, "sum(estuary_requests_finished_total)", 3)
            yield client


def _expressions():
    """Each query of the dashboard as Grafana sends it."""
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "estuary.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    filled = [expression.replace("$model_name", "tiny") for expression in asked]
    return sorted({expression.replace("$__rate_interval", "1m") for expression in filled})


def test_the_server_is_up_and_says_what_happened(scraped):
    assert _value(scraped, 'up{job="estuary"}') == 1
    assert _value(scraped, 'vllm:request_success_total{finished_reason="stop"}') == 2
    assert _value(scraped, 'vllm:request_success_total{finished_reason="length"}') == 1
    assert _value(scraped, "vllm:e2e_request_latency_seconds_count") == 3


def test_names_that_gateways_read_have_their_types(scraped):
    known = _ask(scraped, "metadata")
    assert {name: known[name][0]["type"] for name in GATEWAY} == GATEWAY
    labels = _ask(scraped, "query", query="vllm:cache_config_info")["result"][0]["metric"]
    assert {"block_size", "num_gpu_blocks", "model_name", "engine"} <= set(labels)


def test_every_query_of_the_dashboard_is_understood(scraped):
    refused = [expression for expression in _expressions()
               if _ask(scraped, "query", query=expression) is None]  # fmt: skip
    assert refused == []


def test_gauges_and_totals_of_the_dashboard_have_a_value(scraped):
    plain = [expression for expression in _expressions() if "rate(" not in expression]
    bare = [re.sub(r" / .*", "", expression) for expression in plain]
    assert len(bare) > 5
    assert [expression for expression in bare if _value(scraped, expression) is None] == []


def test_every_alert_is_loaded_and_a_healthy_server_raises_none(scraped):
    deadline_s = time.monotonic() + WAITS_S
    while True:
        rules = [rule for group in _ask(scraped, "rules")["groups"] for rule in group["rules"]]
        if all(rule["health"] == "ok" for rule in rules):
            break
        assert time.monotonic() < deadline_s, rules
        time.sleep(0.1)
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    assert len(rules) == sum(len(group["rules"]) for group in shipped)
    assert [rule["name"] for rule in rules if rule["state"] != "inactive"] == []


def test_a_server_that_is_gone_is_noticed(tmp_path):
    with running_server() as (process, address):
        target = address.removeprefix("http://")
        with _running_prometheus(tmp_path, target) as client:
            _wait_for_value(client, 'up{job="estuary"}', 1)
            process.kill()
            process.wait(WAITS_S)
            _wait_for_value(client, 'up{job="estuary"}', 0)
            deadline_s = time.monotonic() + WAITS_S
            while not (alerts := _ask(client, "alerts")["alerts"]):
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
    assert {alert["labels"]["alertname"] for alert in alerts} == {"EstuaryDown"}
