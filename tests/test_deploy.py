"""The recipes in deploy/ work: files are valid, commands parse, every one makes a backup; the image's contents run."""

from __future__ import annotations

import configparser
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import check_jsonschema
import click
import googleapiclient
import jsonschema
import kubernetes_validate
import pytest
import typing_extensions
import yaml
from azure.mgmt.appcontainers import models as azure_models
from azure.mgmt.appcontainers import types as azure_types
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from tests import docs
from tests.conftest import BOX_SECRET, ROOT, TOKEN, Cli, load_catalog
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.support import install_command

DEPLOY = ROOT / "deploy"
SCHEDULING = (ROOT / "docs" / "SCHEDULING.md").read_text()
FIRST_STEPS = (ROOT / "docs" / "FIRST_STEPS.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
USER_ID = 10001
RECIPIENTS = ROOT / "tests" / "data" / "frozen-encrypted" / "keys" / "recipients.txt"  # instead of a placeholder
SHELL_PUNCTUATION = ";|&<>()}"  # where a command of ours ends
KUBERNETES_VERSIONS = ("1.31", "1.34", "1.37")


# ======================================================================================================================
# What stands in the recipes
# ======================================================================================================================


@dataclass
class Run:
    """A command of a recipe: our script, its arguments, the variables that it gets."""

    recipe: str
    script: str
    arguments: list[str]
    environ: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.recipe}-{self.script}{f'-{self.arguments[0]}' if self.script == 'snapshots.py' else ''}"


def load_yaml(name: str) -> list[Any]:
    """All documents of a YAML file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def load_json(name: str) -> Any:
    """A JSON file."""
    return json.loads((DEPLOY / name).read_text())


def environ_of(entries: list[dict[str, Any]], value: str = "value") -> dict[str, str]:
    """Variables from a list of name and value; those that come from a secret get none."""
    return {entry["name"]: entry.get(value, "") for entry in entries}


def env_file() -> dict[str, str]:
    """deploy/astra-backup.env; comments that hold a variable count."""
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", (DEPLOY / "astra-backup.env").read_text(), re.MULTILINE)
    return dict(lines)


def commands_in(text: str) -> Iterator[tuple[dict[str, str], str, list[str]]]:
    """Our commands in lines of shell: variables in front, the script, its arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        for match in re.finditer(
            r"((?:[A-Z_]+=\S+ +)*)\S*python3? +(?:\S*/)?(astra_backup|restore|snapshots)\.py\b([^#`]*)", line
        ):
            shell = shlex.shlex(re.sub(r"\d?>", " >", match[3]), posix=True, punctuation_chars=True)
            shell.whitespace_split = True
            words = list(itertools.takewhile(lambda word: word[0] not in SHELL_PUNCTUATION, shell))
            variables = dict(pair.split("=", 1) for pair in match[1].split())
            yield variables, f"{match[2]}.py", words


def cron_runs() -> list[Run]:
    """The jobs of the crontab."""
    text = (DEPLOY / "cron" / "astra-backup.crontab").read_text()
    lines = [line for line in text.splitlines() if re.match(r"[\d*]", line)]
    runs = [Run("cron", script, words, env_file() | own) for own, script, words in commands_in("\n".join(lines))]
    assert len(runs) == len(lines)
    return runs


def systemd_runs() -> list[Run]:
    """The services' ExecStart=."""
    texts = [(DEPLOY / "systemd" / f"{name}.service").read_text() for name in ("astra-backup", "astra-prune")]
    found = [
        next(commands_in(text.replace("\\\n", " ").split("ExecStart=/usr/bin/env", 1)[1].split("\n")[0]))
        for text in texts
    ]
    return [Run("systemd", script, words, env_file() | own) for own, script, words in found]


def github_runs() -> list[Run]:
    """The workflow's steps that make the backup and prune."""
    (workflow,) = load_yaml("github/astra-backup.yml")
    runs = []
    for job in workflow["jobs"].values():
        step = job["steps"][-1]
        _, script, words = next(commands_in(step["run"]))
        runs.append(Run("github", script, words, job["env"] | step["env"]))
    return runs


def container_runs() -> list[Run]:
    """The containers' arguments, which follow the image's entry point."""
    runs = [
        Run("ecs", *first_word(container["command"]), environ_of(container["environment"] + container["secrets"]))
        for container in load_json("ecs/task-definition.json")["containerDefinitions"]
    ]
    pods = [("kubernetes", job["spec"]["jobTemplate"]["spec"]["template"]["spec"]) for job in cron_jobs()]
    for name in ("job", "prune-job"):
        (job,) = load_yaml(f"cloud-run/{name}.yaml")
        (azure,) = load_yaml(f"azure/{name}.yaml")
        pods += [("cloud-run", job["spec"]["template"]["spec"]["template"]["spec"])]
        pods += [("azure", azure["properties"]["template"])]
    for name, pod in pods:
        (container,) = pod["containers"]
        runs.append(Run(name, *first_word(container["args"]), environ_of(container["env"])))
    return runs


def cron_jobs() -> list[Any]:
    """Kubernetes' two jobs: the backup, and the one that prunes."""
    return [each for each in load_yaml("kubernetes/astra-backup.yaml") if each["kind"] == "CronJob"]


def first_word(words: list[str]) -> tuple[str, list[str]]:
    """The script and its arguments."""
    return words[0], words[1:]


RUNS = [*cron_runs(), *systemd_runs(), *github_runs(), *container_runs()]
BACKUPS = [run for run in RUNS if run.script == "astra_backup.py"]
PRUNES = [run for run in RUNS if run.script == "snapshots.py" and run.arguments[0] == "prune"]
DOCUMENTED = [
    Run(path.name, script, words)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(DEPLOY.rglob("*.*"))]
    for block in (
        re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL) if path.suffix == ".md" else [path.read_text()]
    )
    for _, script, words in commands_in(block)
]
KNOWN_VARIABLES = set(docs.NO_OPTION) | {
    option.envvar
    for command in docs.COMMANDS.values()
    for option in command.params
    if isinstance(option, click.Option) and isinstance(option.envvar, str)
}


def clear_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours is set."""
    for name in list(os.environ):
        if name.startswith(("ASTRA_DB_", "BACKUP_", "BOX_")):
            monkeypatch.delenv(name)


# ======================================================================================================================
# Commands and variables
# ======================================================================================================================


@pytest.mark.parametrize("run", RUNS + DOCUMENTED, ids=str)
def test_every_command_of_a_recipe_goes_through_the_option_parser(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's own parser takes each command line in deploy/ and in the documents, with the recipe's variables."""
    clear_variables(monkeypatch)
    for name, value in run.environ.items():
        monkeypatch.setenv(name, value)
    name, *arguments = [run.script, *run.arguments]
    if name == "snapshots.py":
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    docs.COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("path", sorted(path for path in DEPLOY.rglob("*.*")), ids=lambda path: path.name)
def test_every_variable_of_a_recipe_is_one_that_the_product_knows(path: Path) -> None:
    """Each variable that a file in deploy/ sets or names is in the reference's table."""
    used = set(re.findall(r"\b(?:ASTRA_DB|BACKUP|BOX)_[A-Z_]*[A-Z]\b", path.read_text()))
    assert used - KNOWN_VARIABLES == set()


def test_every_variable_in_the_scheduling_guide_is_known() -> None:
    """So is each in docs/SCHEDULING.md."""
    used = set(re.findall(r"\b(?:ASTRA_DB|BACKUP|BOX)_[A-Z_]*[A-Z]\b", SCHEDULING))
    assert used - KNOWN_VARIABLES == set()


@pytest.mark.parametrize("run", BACKUPS, ids=str)
def test_every_recipe_makes_a_backup(
    run: Run, cli: Cli, source: DataApiEmulator, box: BoxEmulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Run with nothing but its own variables, each recipe ends with 0 and the snapshot in Box."""
    load_catalog(source)
    set_variables(run, cli, source, box, tmp_path_factory.mktemp("secrets"))
    done = cli.run(run.script, *run.arguments)
    assert done.code == 0, done.err
    (snapshot,) = cli.snapshots()
    assert list(box.files()) == [f"{snapshot.name}.zip"]
    if "--quiet" in run.arguments:  # cron mails what is printed to stderr
        assert done.err == ""


def test_every_scheduler_prunes() -> None:
    """Each recipe that makes a backup has a job of its own, or a second container, that deletes."""
    assert sorted(run.recipe for run in PRUNES) == sorted(run.recipe for run in BACKUPS)


@pytest.mark.parametrize("run", PRUNES, ids=str)
def test_every_recipe_deletes_what_no_rule_keeps(
    run: Run, cli: Cli, source: DataApiEmulator, box: BoxEmulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Run with nothing but its own variables, without a token of the database, each recipe's job leaves what its rules
    keep: of five snapshots of one day in Box the newest, and on a disk that lasts the last three.
    """
    fields = ("ASTRA_DB_APPLICATION_TOKEN", "ASTRA_DB_APPLICATION_TOKEN_FILE")
    source.create("default_keyspace", "docs")
    assert cli.with_box(box).run("astra_backup.py", "--api-endpoint", source.url).code == 0
    (newest,) = cli.snapshots()
    old = [f"20240101_00000{number}" for number in range(5)]
    for name in old:
        shutil.copytree(newest, cli.backups / name)
        assert cli.stored("upload", name).code == 0
    set_variables(run, cli, source, box, tmp_path_factory.mktemp("secrets"))
    for name in fields if run.recipe not in ("cron", "systemd") else ():
        assert name not in cli.environ
    done = cli.run(run.script, *run.arguments)
    assert done.code == 0, done.err
    assert sorted(box.files()) == [f"{old[-1]}.zip", f"{newest.name}.zip"]
    is_lasting = any(word.startswith("--keep-last") for word in run.arguments)
    assert [path.name for path in cli.snapshots()] == [*(old[-2:] if is_lasting else old), newest.name]
    if "--quiet" in run.arguments:
        assert done.err == ""


def set_variables(run: Run, cli: Cli, source: DataApiEmulator, box: BoxEmulator, secrets: Path) -> None:
    """A recipe's variables: placeholders become the emulators' values, files of secrets files with the emulators'."""
    (secrets / "astra").write_text(f"{TOKEN}\n")
    (secrets / "box").write_text(f"{BOX_SECRET}\n")
    values = {
        "ASTRA_DB_API_ENDPOINT": source.url,
        "ASTRA_DB_APPLICATION_TOKEN": TOKEN,
        "ASTRA_DB_APPLICATION_TOKEN_FILE": str(secrets / "astra"),
        "BOX_CLIENT_SECRET": BOX_SECRET,
        "BOX_CLIENT_SECRET_FILE": str(secrets / "box"),
        "BOX_CLIENT_ID": box.client_id,
        "BOX_ENTERPRISE_ID": box.enterprise_id,
        "BOX_FOLDER_ID": box.folder_id,
        "BACKUP_ENCRYPT_TO": str(RECIPIENTS),
        "BACKUP_PING_URL": "",
        "BACKUP_METRICS_FILE": str(cli.directory / "metrics.prom"),
    }
    cli.environ = {name: values.get(name, value) for name, value in run.environ.items()}
    cli.environ |= {"BOX_BASE_URL": box.url, "BOX_UPLOAD_URL": box.upload_url, "ASTRA_DB_ENVIRONMENT": "hcd"}


def test_what_goes_wrong_under_cron_is_printed(cli: Cli, source: DataApiEmulator) -> None:
    """With --quiet a failed backup says so on stderr, which cron mails."""
    done = cli.backup(source, "--quiet", "--keyspace", "nowhere")
    assert done.code == 1
    assert "UNKNOWN_KEYSPACE" in done.err


# ======================================================================================================================
# Files against the schemas that their services publish
# ======================================================================================================================


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("name", ["astra-backup", "astra-backup-indexed"])
def test_the_kubernetes_recipe_is_valid(name: str, version: str) -> None:
    """Kubernetes' own schemas accept it, unknown fields refused, for the oldest and newest versions we name."""
    for manifest in load_yaml(f"kubernetes/{name}.yaml"):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_cron_job_does_what_the_guide_says() -> None:
    """No overlap, no second attempt after 1, 4 and 5, a read-only root, a numeric user, volumes that exist."""
    cronjob, _ = cron_jobs()
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"
    job = cronjob["spec"]["jobTemplate"]["spec"]
    fail, ignore = job["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"]["values"] == [1, 4, 5]
    assert ignore["action"] == "Ignore"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    assert pod["securityContext"]["runAsUser"] == USER_ID
    (container,) = pod["containers"]
    assert container["name"] == fail["onExitCodes"]["containerName"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def check_discovery(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    """Check a value against one of Google's discovery schemas; unknown fields are refused."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    assert isinstance(value, kinds[schema["type"]]), where
    if schema["type"] == "array":
        for number, item in enumerate(value):
            check_discovery(item, schema["items"], schemas, f"{where}[{number}]")
    for name, item in value.items() if isinstance(value, dict) else ():
        known = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        assert known, f"{where}.{name} is unknown"
        check_discovery(item, known, schemas, f"{where}.{name}")
    if "enum" in schema:
        assert value in schema["enum"], where


def discovery_schemas(name: str) -> Any:
    """The schemas of one of Google's interfaces."""
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    return json.loads((folder / name).read_text())["schemas"]


def test_the_cloud_run_recipe_is_valid() -> None:
    """The schemas of Cloud Run and of Cloud Monitoring accept the job and the alert policy."""
    for name in ("job", "prune-job", "tasks-job", "prune-tasks-job"):
        (job,) = load_yaml(f"cloud-run/{name}.yaml")
        check_discovery(job, {"$ref": "Job"}, discovery_schemas("run.v1.json"), name)
    policy = load_json("cloud-run/alert-policy.json")
    check_discovery(policy, {"$ref": "AlertPolicy"}, discovery_schemas("monitoring.v3.json"), "policy")


def test_the_discovery_check_finds_mistakes() -> None:
    """A misspelt field and a wrong type are found."""
    (job,) = load_yaml("cloud-run/job.yaml")
    task = job["spec"]["template"]["spec"]["template"]["spec"]
    for mistake in ({"maxRetry": 0}, {"maxRetries": "0"}, {"timeoutSeconds": 600}):
        changed = json.loads(json.dumps(job).replace(json.dumps(task), json.dumps(task | mistake)))
        with pytest.raises(AssertionError):
            check_discovery(changed, {"$ref": "Job"}, discovery_schemas("run.v1.json"), "job")


@pytest.mark.parametrize(
    ("file", "service", "operation"),
    [("task-definition.json", "ecs", "RegisterTaskDefinition"), ("schedule.json", "scheduler", "CreateSchedule")],
)
def test_the_ecs_recipe_is_valid(file: str, service: str, operation: str) -> None:
    """The AWS client's own models accept what `--cli-input-json` sends."""
    model = ServiceModel(Loader().load_service_model(service, "service-2"))
    report = ParamValidator().validate(load_json(f"ecs/{file}"), model.operation_model(operation).input_shape)
    assert not report.has_errors(), report.generate_report()


def test_the_ecs_alarm_names_the_family_that_the_task_has() -> None:
    """The rule looks for tasks of the definition's family, and the schedule starts it."""
    family = load_json("ecs/task-definition.json")["family"]
    assert load_json("ecs/alarm-pattern.json")["detail"]["group"] == [f"family:{family}"]
    target = load_json("ecs/schedule.json")["Target"]
    assert target["EcsParameters"]["TaskDefinitionArn"].endswith(f"/{family}")


def check_typed(value: Any, kind: Any, where: str) -> None:
    """Check a value against a type as Azure's client declares it; unknown keys are refused."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Required, typing_extensions.Required):
        check_typed(value, arguments[0], where)
    elif origin is typing.Union:
        assert isinstance(value, str), where  # everywhere here: one of an enum's values, or another string
    elif origin is list:
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            check_typed(item, arguments[0], f"{where}[{number}]")
    elif origin is dict:
        for name, item in value.items():
            check_typed(item, arguments[1], f"{where}.{name}")
    elif typing_extensions.is_typeddict(kind):
        hints = typing.get_type_hints(kind, vars(azure_models) | vars(azure_types), include_extras=True)
        missing = {name for name, hint in hints.items() if typing.get_origin(hint) is typing_extensions.Required} - set(
            value
        )
        assert not missing, f"{where} lacks {missing}"
        for name, item in value.items():
            assert name in hints, f"{where}.{name} is unknown"
            check_typed(item, hints[name], f"{where}.{name}")
    else:
        assert isinstance(value, (int, float) if kind is float else kind), where


def test_the_azure_recipe_is_valid() -> None:
    """The types of Azure's client for Container Apps accept the job; a misspelt field is found."""
    for name in ("prune-job", "job"):
        (job,) = load_yaml(f"azure/{name}.yaml")
        check_typed(job, azure_types.Job, name)
    job["properties"]["configuration"]["replicaRetries"] = 0
    with pytest.raises(AssertionError, match="replicaRetries is unknown"):
        check_typed(job, azure_types.Job, "job")


def test_nothing_is_tried_again_where_exit_codes_cannot_be_told_apart() -> None:
    """A second attempt after a 5 would compare with the shrunk snapshot; so Cloud Run and Azure make one attempt."""
    for name in ("job", "tasks-job"):
        (job,) = load_yaml(f"cloud-run/{name}.yaml")
        assert job["spec"]["template"]["spec"]["template"]["spec"]["maxRetries"] == 0
    (azure,) = load_yaml("azure/job.yaml")
    assert azure["properties"]["configuration"]["replicaRetryLimit"] == 0


@pytest.mark.parametrize("path", [DEPLOY / "github/astra-backup.yml", ROOT / ".github/workflows/ci.yml"], ids=str)
def test_a_github_workflow_is_valid(path: Path) -> None:
    """The published schema of workflows accepts it, every action is pinned to a commit, and it may only read."""
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "github-workflows.json").read_text())
    workflow = yaml.safe_load(path.read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads `on` as a boolean
    jsonschema.validate(workflow, schema)
    jobs = list(workflow["jobs"].values())
    assert {"write", "write-all"} & {str(job.get("permissions", {}).get("contents")) for job in jobs} == set()
    assert workflow["permissions"] in ({}, {"contents": "read"})
    actions = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_systemd_units_are_valid() -> None:
    """systemd-analyze verifies the units, and calls the service's exposure OK (under 2 of 10)."""
    units = sorted((DEPLOY / "systemd").glob("*.service")) + sorted((DEPLOY / "systemd").glob("*.timer"))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("astra-backup", "astra-prune"):
        service = DEPLOY / "systemd" / f"{name}.service"
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", service]
        assert subprocess.run(command, capture_output=True).returncode == 0


def test_systemd_does_not_try_again_what_must_be_looked_at() -> None:
    """After a 5 there is no second attempt; being stopped is no failure."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read_string((DEPLOY / "systemd" / "astra-backup.service").read_text().replace("\\\n", " "))
    assert unit["Service"]["RestartPreventExitStatus"] == "4 5"
    assert "SuccessExitStatus" not in unit["Service"], "prune must not run behind a backup that was stopped"


def test_the_crontab_has_five_fields_a_line() -> None:
    """Every job's time is five fields in their ranges, and no command holds a bare percent sign, which ends it."""
    ranges = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
    text = (DEPLOY / "cron" / "astra-backup.crontab").read_text()
    jobs = [line for line in text.splitlines() if line and not line.startswith("#") and "=" not in line.split()[0]]
    assert len(jobs) == len(cron_runs())
    for job in jobs:
        *times, command = job.split(None, 5)
        for value, (least, most) in zip(times, ranges, strict=True):
            assert value == "*" or least <= int(value) <= most, job
        assert "%" not in command
        assert subprocess.run(["sh", "-n", "-c", command]).returncode == 0


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.parent.name)
def test_the_shell_scripts_parse_and_name_files_that_exist(path: Path) -> None:
    """The shell can read them, and the files of deploy/ that they use are there."""
    assert subprocess.run(["sh", "-n", path]).returncode == 0
    for name in re.findall(r"deploy/[\w./-]+\w", path.read_text()):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.*")), ids=lambda path: path.name)
def test_the_guide_names_every_file(path: Path) -> None:
    """Each file in deploy/ is linked in docs/SCHEDULING.md."""
    assert f"(../{path.relative_to(ROOT)})" in SCHEDULING


@pytest.mark.parametrize("code", sorted({int(code) for code in docs.EXITS["astra_backup.py"]}))
def test_the_guide_says_what_every_exit_code_means_to_a_scheduler(code: int) -> None:
    """Each exit code of a backup has a row in docs/SCHEDULING.md."""
    assert re.search(rf"^\| (?:\d+, )*{code}(?:, \d+)* \|", SCHEDULING, re.MULTILINE)


# ======================================================================================================================
# docs/FIRST_STEPS.md
# ======================================================================================================================


@dataclass
class Mistake:
    """A newcomer's mistake: what to set or to give, and what the guide quotes of the reply."""

    quote: str
    environ: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("astra_backup.py", "--check", "--json")
    box_fault: dict[str, Any] | None = None
    may_upload: bool = True

    def __str__(self) -> str:
        return self.quote.replace(" ", "-")


def token_refused(error: str) -> dict[str, Any]:
    """Box's reply to a request for a token."""
    return {"api": "token", "action": "status", "status": 400, "body": {"error": error}, "times": None}


NO_SCOPE = {"type": "error", "status": 403, "code": "insufficient_scope", "message": "No."}
DRILL = ("restore.py", "--from-box", "--drill", "--keyspace")
MISTAKES = [
    Mistake("No database is named.", {"ASTRA_DB_API_ENDPOINT": ""}),
    Mistake("is not an http(s) URL.", {"ASTRA_DB_API_ENDPOINT": "id-region.apps.astra.datastax.com"}),
    Mistake("No token.", {"ASTRA_DB_APPLICATION_TOKEN": ""}),
    Mistake(
        "which ASTRA_DB_APPLICATION_TOKEN_FILE names: No such file or directory",
        {"ASTRA_DB_APPLICATION_TOKEN": "", "ASTRA_DB_APPLICATION_TOKEN_FILE": "~/token"},
    ),
    Mistake("The server answered HTTP 401", {"ASTRA_DB_APPLICATION_TOKEN": "AstraCS:another"}),
    Mistake("No reply from", {"ASTRA_DB_API_ENDPOINT": "http://127.0.0.1:9", "BACKUP_RETRY_BUDGET": "1"}),
    Mistake(
        "is not an endpoint of the environment",
        {"ASTRA_DB_API_ENDPOINT": "https://id.apps.astra.datastax.com/api/json"},
    ),
    Mistake("UNKNOWN_KEYSPACE", {"ASTRA_DB_KEYSPACE": "shop"}),
    Mistake("No such collection", {}, ("astra_backup.py", "--check", "--json", "--collection", "asset")),
    Mistake("cannot be written", {"BACKUP_OUTPUT_DIR": "/dev/null/backups"}),
    Mistake("Box is not configured: not set:", {"BOX_CLIENT_ID": ""}),
    Mistake("HTTP 400 invalid_client", {"BOX_CLIENT_SECRET": "another-secret"}),
    Mistake("HTTP 400 unauthorized_client", box_fault=token_refused("unauthorized_client")),
    Mistake("HTTP 400 invalid_grant", {"BOX_ENTERPRISE_ID": "4711"}),
    Mistake(
        "HTTP 403 insufficient_scope",
        box_fault={"api": "*", "action": "status", "status": 403, "body": NO_SCOPE, "times": None, "skip": 1},
    ),
    Mistake("BOX_FOLDER_ID is 0", {"BOX_FOLDER_ID": "0"}),
    Mistake("HTTP 404 not_found", {"BOX_FOLDER_ID": "4711"}),
    Mistake("an Editor of the folder", may_upload=False),
    Mistake("HTTP 403 access_denied_insufficient_permissions", {}, ("astra_backup.py",), may_upload=False),
    Mistake("There is no complete snapshot in", {}, (*DRILL, "default_keyspace")),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_the_first_steps_quote_what_the_product_says(
    mistake: Mistake, cli: Cli, source: DataApiEmulator, box: BoxEmulator
) -> None:
    """Each mistake of a newcomer fails with the words that docs/FIRST_STEPS.md lists, and with the way out."""
    assert f"| `{mistake.quote}` |" in FIRST_STEPS
    load_catalog(source)
    box.can_upload = mistake.may_upload
    box.faults = [mistake.box_fault] if mistake.box_fault else []
    variables = {"ASTRA_DB_API_ENDPOINT": source.url} | mistake.environ
    done = cli.with_box(box).run(*mistake.arguments, **variables)
    assert done.code != 0
    if "--json" in mistake.arguments:
        (check,) = [check for check in done.json["checks"] if not check["ok"]]
        assert mistake.quote in " ".join(str(value) for value in check.values())
    else:
        assert mistake.quote in done.err


def test_the_first_steps_list_no_error_that_is_not_tested() -> None:
    """Each quoted error of the guide's tables is one of those above, or one of the two that only a target gives."""
    quoted = set(re.findall(r"^\| `([^`]+)` \|", FIRST_STEPS, re.MULTILINE))
    assert quoted - {mistake.quote for mistake in MISTAKES} == {"TOO_MANY_COLLECTIONS"}


def test_a_drill_says_when_there_is_no_room_for_collections(cli: Cli, source: DataApiEmulator) -> None:
    """A database that takes no more collections is TOO_MANY_COLLECTIONS, as the guide says."""
    load_catalog(source)
    assert cli.backup(source).code == 0
    with DataApiEmulator(token=TOKEN, max_collections=2) as full:
        done = cli.restore(full, "--drill")
    assert done.code == 4
    assert "TOO_MANY_COLLECTIONS" in done.err


def completed(directory: Path, command: str, *lines: str) -> list[str]:
    """What bash offers for the last word of each line, with the guide's line for ~/.bashrc."""
    install_command(command, directory)
    variable, function = command.upper().replace("-", "_"), command.replace("-", "_")
    setting = f'eval "$(_{variable}_COMPLETE=bash_source {command})"'
    assert f"`{setting}`" in FIRST_STEPS
    script = f"{setting}\n"
    for line in lines:
        script += f"COMP_WORDS=({command} {line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        script += f"_{function}_completion {command}; printf '%s ' \"${{COMPREPLY[@]}}\"; COMPREPLY=()\n"
    environ = {"PATH": f"{directory}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ, cwd=directory)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_commands(tmp_path: Path) -> None:
    """The guide's line for `astra-snapshots` completes its commands and their options."""
    assert completed(tmp_path, "astra-snapshots", "st", "status --max") == ["status", "--max-age"]


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_options_and_choices(tmp_path: Path) -> None:
    """The guide's line for `astra-restore` completes an option and its choices."""
    offered = ["--on-existing", "fail", "skip", "overwrite", "drop"]
    assert completed(tmp_path, "astra-restore", "--on-", "--on-existing ''") == offered


# ======================================================================================================================
# The image
# ======================================================================================================================


def test_the_dockerfile_passes_hadolint() -> None:
    """Hadolint has nothing to say about the Dockerfile."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def pip(*arguments: object) -> None:
    """Run pip; skip the test where there is no package registry."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and re.search(r"connection|resolve|timed? ?out|network", done.stderr, re.IGNORECASE):
        pytest.skip(f"no package registry: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_pinned_package_has_a_wheel_for_the_image(machine: str, tmp_path: Path) -> None:
    """The Dockerfile's Python can install every pin as a wheel, with its hash, on both kinds of machine."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)\.\d+-slim\S*@sha256:[0-9a-f]{64} ", DOCKERFILE, re.MULTILINE))
    platforms = [
        f"--platform={tag}_{machine}" for tag in ("manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
    ]
    wanted = ("--require-hashes", "--only-binary", ":all:", "-r", ROOT / "requirements.txt")
    pip("download", "--quiet", "--no-deps", "--dest", tmp_path, "--python-version", version, *platforms, *wanted)
    assert len(list(tmp_path.iterdir())) > 20


@dataclass
class Image:
    """What the image holds, as far as it can be made without a container engine: packages and scripts, read-only."""

    root: Path
    python: str

    def run(self, script: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run as the image's user, without HOME, with one directory that can be written."""
        backups = str(self.root / "backups")
        environ |= {"PYTHONPATH": str(self.root / "packages"), "BACKUP_OUTPUT_DIR": backups, "TMPDIR": backups}
        environ |= {"PYTHONDONTWRITEBYTECODE": "1"}
        command = [self.python, script, *map(str, arguments)]
        ids: dict[str, Any] = {"user": USER_ID, "group": USER_ID, "extra_groups": []}
        return subprocess.run(command, cwd=self.root / "work", env=environ, capture_output=True, text=True, **ids)


def python_for_all() -> str:
    """A Python of the version that runs the tests which the image's user may execute."""
    for python in (str(Path(sys.executable).resolve()), shutil.which("python3", path="/usr/bin") or sys.executable):
        check = "import sys; sys.exit(sys.version_info[:2] != " + repr(sys.version_info[:2]) + ")"
        try:
            if not subprocess.run([python, "-c", check], user=USER_ID, cwd="/", env={}).returncode:
                return python
        except PermissionError:
            continue
    pytest.skip("no Python here that another user may execute")


@pytest.fixture
def image() -> Iterator[Image]:
    """The pinned packages, installed into a clean directory, and the files that the Dockerfile copies."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    python = python_for_all()
    root = Path(tempfile.mkdtemp(prefix="astra-backup-image-"))
    try:
        pip(
            "install",
            "--quiet",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--target",
            root / "packages",
            "-r",
            ROOT / "requirements.txt",
        )
        (root / "work").mkdir()
        for name in re.findall(r"^COPY (?!--)(.*) \./$", DOCKERFILE, re.MULTILINE)[0].split():
            shutil.copy(ROOT / name, root / "work")
        (root / "backups").mkdir(mode=0o700)
        os.chown(root / "backups", USER_ID, USER_ID)
        root.chmod(0o755)
        (root / "work").chmod(0o555)
        yield Image(root, python)
    finally:
        shutil.rmtree(root)


def test_the_image_backs_up_and_restores_as_another_user(
    image: Image, source: DataApiEmulator, target: DataApiEmulator, box: BoxEmulator
) -> None:
    """As user 10001, without HOME, with one writable directory: a backup to Box, and a restore that compares equal.

    What docs/SCHEDULING.md says of the packages' size is within a fifth of what was installed for it.
    """
    load_catalog(source)
    database = {"ASTRA_DB_APPLICATION_TOKEN": TOKEN, "ASTRA_DB_ENVIRONMENT": "hcd"}
    account = {
        "BOX_CLIENT_ID": box.client_id,
        "BOX_CLIENT_SECRET": box.client_secret,
        "BOX_ENTERPRISE_ID": box.enterprise_id,
        "BOX_FOLDER_ID": box.folder_id,
        "BOX_BASE_URL": box.url,
        "BOX_UPLOAD_URL": box.upload_url,
    }
    done = image.run("astra_backup.py", "--api-endpoint", source.url, **database, **account)
    assert done.returncode == 0, done.stderr
    assert len(box.files()) == 1
    done = image.run("restore.py", "--from-box", "--yes", "--api-endpoint", target.url, **database, **account)
    assert done.returncode == 0, done.stderr
    (snapshot,) = (image.root / "backups").glob("[0-9]*")
    assert snapshot.stat().st_uid == USER_ID
    assert {path.name for path in (image.root / "work").iterdir()} == {"LICENSE", *docs.SCRIPTS}
    measured = sum(path.stat().st_size for path in (image.root / "packages").rglob("*") if path.is_file()) / 1e6
    match = re.search(r"packages: (\d+) MB", SCHEDULING)
    assert match
    assert measured == pytest.approx(int(match[1]), rel=0.2)
