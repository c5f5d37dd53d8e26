"""What is in `deploy/` and the Dockerfile, checked against the running application and by tools."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.settings import load_settings
from tests.server.scripted_engine import ScriptedEngine

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "estuary.json"
METRIC = re.compile(r"\b(?:estuary_|vllm:|http_)[a-z0-9_]+")
PROMTOOL = shutil.which("promtool")
HADOLINT = shutil.which("hadolint")


def _panels():
    return [
        panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"
    ]


def _dashboard_expressions():
    return [target["expr"] for panel in _panels() for target in panel["targets"]]


def _alerts():
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.anyio
@pytest.mark.parametrize("source", ["dashboard", "alerts"])
async def test_every_metric_that_is_asked_for_is_there(serve, source):
    async with serve(ScriptedEngine(modes=("ar", "diffusion", "speculative"))) as served:
        await served.chat()
        text = (await served.client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    known = {family.name + ending for family in families
             for ending in ("", "_total", "_bucket", "_sum", "_count")}  # fmt: skip
    expressions = {
        "dashboard": _dashboard_expressions(),
        "alerts": [rule["expr"] for rule in _alerts()],
    }[source]
    asked = {name for expression in expressions for name in METRIC.findall(expression)}
    assert len(asked) > 5
    assert asked - known == set()


def test_the_dashboard_can_be_imported_by_hand_and_from_a_file():
    dashboard = json.loads(DASHBOARD.read_text())
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert dashboard["__inputs"][0]["name"] == "DS_PROMETHEUS"
    assert dashboard["uid"] == "estuary"
    assert len(set(identifiers)) == len(identifiers)
    assert {panel["datasource"]["uid"] for panel in _panels()} == {"${DS_PROMETHEUS}"}


def test_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.prometheus
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yaml"],
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ],
)
def test_prometheus_accepts_its_files(arguments):
    ended = subprocess.run(
        [PROMTOOL, *arguments],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.anyio
@pytest.mark.prometheus
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
async def test_prometheus_finds_nothing_to_complain_about_in_our_metrics(serve):
    async with serve(ScriptedEngine(modes=("ar", "diffusion"))) as served:
        await served.chat()
        text = (await served.client.get("/metrics")).text
    ended = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # The names with a colon are those of vLLM, which break the rule that promtool states.
    complaints = [
        line for line in ended.stderr.splitlines() if line and not line.startswith("vllm:")
    ]
    assert complaints == []


def test_every_alert_says_how_bad_it_is_and_what_is_wrong():
    rules = _alerts()
    assert {rule["labels"]["severity"] for rule in rules} == {"critical", "warning"}
    assert [rule["alert"] for rule in rules if "summary" not in rule["annotations"]] == []


def _manifest(name):
    return yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())


def test_kubernetes_waits_for_the_server_to_stop():
    settings = load_settings({})
    longest_s = settings.drain_grace + settings.shutdown_timeout
    pod = _manifest("deployment.yaml")["spec"]["template"]["spec"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert pod["terminationGracePeriodSeconds"] > longest_s
    assert int(compose["services"]["estuary"]["stop_grace_period"].rstrip("s")) > longest_s


@pytest.mark.anyio
async def test_kubernetes_probes_routes_that_are_open(serve):
    container = _manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    paths = [container[probe]["httpGet"]["path"]
             for probe in ("startupProbe", "readinessProbe", "livenessProbe")]  # fmt: skip
    async with serve(api_key=["one"]) as served:
        answers = [await served.client.get(path) for path in paths]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_kubernetes_sets_only_settings_that_exist(monkeypatch):
    container = _manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    assert str(load_settings({}).api_key_file) == "/keys/api-keys"


def test_every_manifest_is_in_the_kustomization():
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert set(_manifest("kustomization.yaml")["resources"]) == files - {"kustomization.yaml"}


@pytest.mark.parametrize(
    "name",
    [
        "deployment.yaml",
        "service.yaml",
        "cache.yaml",
        "disruption-budget.yaml",
        "autoscaler.yaml",
        "network-policy.yaml",
    ],
)
def test_manifests_follow_their_schemas(name):
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    version = validator.latest_version()
    assert version.startswith(validator.validate(_manifest(name), version, strict=True))


def _instructions():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]


def test_the_image_runs_without_rights_and_can_be_stopped_and_probed():
    instructions = _instructions()
    of = {name: [rest for first, rest in instructions if first == name]
          for name in ("FROM", "USER", "ENTRYPOINT", "HEALTHCHECK", "STOPSIGNAL")}  # fmt: skip
    assert of["USER"] == ["10001:0", "10001:0"]
    assert json.loads(of["ENTRYPOINT"][0]) == ["estuary"]
    assert of["STOPSIGNAL"] == ["SIGTERM"]
    assert 'CMD ["python", "-m", "server.shell.probe"]' in of["HEALTHCHECK"][0]
    assert [base for base in of["FROM"] if "latest" in base] == []


def test_every_call_of_pip_reads_one_index():
    calls = [part for name, rest in _instructions() if name == "RUN" for part in rest.split("&&")]
    pip = [call for call in calls if "pip install" in call]
    assert len(pip) == 6
    assert [call for call in pip if "--extra-index-url" in call] == []


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint")
def test_the_dockerfile_is_clean():
    ended = subprocess.run(
        [HADOLINT, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout
