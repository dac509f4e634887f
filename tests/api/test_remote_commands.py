"""The command line on a studio elsewhere: the real commands, a real server, a real run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app import server
from app.cli import command_names, main
from app.commands.common import ELSEWHERE
from core.studio import Studio
from tests.api.conftest import OWN, PASSWORD, Served

YAML = """
name: four steps
tasks: [{dataset: hues.csv, test_rows: 6}]
method: {name: molora, options: {rank: 2, experts: 3}}
train: {steps: 4, batch_size: 2, max_length: 64, validation_rows: 4, log_every: 1, routing_moments: 1}
evaluation: {base: false}
device: cpu
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole application of a home with users, as it is served."""
    studio = Studio(tmp_path_factory.mktemp("elsewhere") / "home")
    for name, role in (("ann", "admin"), ("rob", "researcher"), ("vic", "viewer")):
        studio.users.add(name, role, PASSWORD)
    made = Served(studio, server.build(studio))
    yield made
    made.stop()
    studio.dispatcher("stop")
    studio.close()


@pytest.fixture
def rob(elsewhere: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine of a researcher: an address, a token file, nothing else; the folder to work in."""
    monkeypatch.setenv("TESSERA_URL", elsewhere.url)
    monkeypatch.setenv("TESSERA_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / "no-home"))
    monkeypatch.delenv("TESSERA_TOKEN", raising=False)
    token(elsewhere, tmp_path / "token", "rob")
    return tmp_path


def token(elsewhere: Served, path: Path, name: str) -> None:
    path.write_text(elsewhere.studio.users.add_token(name, "test")[0] + "\n")
    path.chmod(0o600)


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_from_a_file_here_to_a_trained_adapter_here(capsys, rob: Path, colours: Path, elsewhere: Served):
    """upload, train, follow, scores, compare, routing, export and the rest, with nothing left on this machine."""
    (rob / "hues.csv").write_bytes(colours.read_bytes())
    (rob / "run.yaml").write_text(YAML)
    stored = told(capsys, "upload", str(rob / "hues.csv"))
    assert stored["owner"] == "rob" and [one["id"] for one in told(capsys, "datasets")] == [stored["id"]]
    assert told(capsys, "upload", str(rob / "hues.csv"), "--preview")["tasks"]["hues"]["rows"]
    assert told(capsys, "train", str(rob / "run.yaml"), "--check")[0]["trainable"] > 0
    assert main(["preflight", str(rob / "run.yaml")]) == 0 and "memory: about" in capsys.readouterr().out

    assert main(["train", str(rob / "run.yaml")]) == 0
    said = capsys.readouterr()
    run = said.err.partition(" is queued")[0]
    assert "step 4: loss" in said.err and "finished" in said.err and f"{run} is done" in said.out
    assert elsewhere.studio.run(run)["owner"] == "rob"

    assert told(capsys, "runs", "--state", "done")[0]["id"] == run
    assert told(capsys, "scores", run)[0]["rows"] == 6
    assert main(["runs"]) == 0 and "four steps" in capsys.readouterr().out
    assert main(["logs", run]) == 0 and "step 4: loss" in capsys.readouterr().out
    assert main(["logs", run, "-f"]) == 0 and "finished" in capsys.readouterr().err
    assert main(["compare", run, "--format", "markdown"]) == 0 and "| hues" in capsys.readouterr().out
    assert main(["routing", run, "--csv", str(rob / "routing.csv")]) == 0 and (rob / "routing.csv").is_file()
    capsys.readouterr()
    assert main(["export", run, str(rob / "adapter")]) == 0
    assert (rob / "adapter" / "adapter_model.safetensors").is_file() and (rob / "adapter" / "README.md").is_file()
    assert main(["export", run, str(rob / "adapter")]) == 1 and "not empty" in capsys.readouterr().err
    assert told(capsys, "clone", run, "--print", "--set", "train.steps=9")["train"]["steps"] == 9
    assert told(capsys, "budget", "lora", "mosld", "--like", "molora")["target"] > 0
    assert told(capsys, "dispatcher")["alive"]
    assert told(capsys, "datasets", "hues", "--delete", "--yes", code=1)["error"]["message"].endswith(f"used by {run}.")

    token(elsewhere, rob / "token", "vic")
    assert main(["delete", run, "--yes"]) == 1 and "viewer" in capsys.readouterr().err
    assert main(["train", str(rob / "run.yaml"), "--detach"]) == 1 and "viewer" in capsys.readouterr().err
    token(elsewhere, rob / "token", "rob")
    assert told(capsys, "delete", run, "--yes") == {"deleted": [run]}
    assert told(capsys, "runs") == [] and not (rob / "no-home").exists()


@pytest.mark.parametrize("name", sorted(set(command_names()) - set(ELSEWHERE)))
def test_commands_that_need_the_studios_machine_say_so(capsys, rob: Path, name: str):
    needed = {"chat": ["run-1"], "import": ["x"], "users": [], "tokens": []}
    assert main([name, *needed.get(name, [])]) == 1
    told = capsys.readouterr().err
    assert f"{name} works on the machine of the studio alone" in told and not (rob / "no-home").exists()


def test_a_home_that_is_named_wins_over_an_address_around_it(capsys, rob: Path):
    assert main(["--home", str(rob / "here"), "runs"]) == 0
    assert "No runs yet" in capsys.readouterr().out
    assert main(["--home", str(rob / "here"), "runs", "--url", "http://127.0.0.1:9"]) == 1
    assert "Give one of them" in capsys.readouterr().err


def test_the_address_may_stand_behind_the_command(capsys, rob: Path, elsewhere: Served, monkeypatch):
    monkeypatch.delenv("TESSERA_URL")
    for form in (["--url", elsewhere.url], [f"--url={elsewhere.url}"]):
        assert told(capsys, "dispatcher", *form)["log"].startswith(str(elsewhere.studio.home.root))
        assert told(capsys, *form, "dispatcher")["log"].startswith(str(elsewhere.studio.home.root))
    assert main(["runs", "--url", "http://gpu.lab.org:7860"]) == 1
    assert "plain http" in capsys.readouterr().err


def test_a_token_file_is_for_its_owner_alone(capsys, rob: Path, monkeypatch):
    (rob / "token").chmod(0o640)
    assert main(["runs"]) == 1 and "chmod 600" in capsys.readouterr().err
    (rob / "token").unlink()
    assert main(["runs"]) == 1 and "cannot be read" in capsys.readouterr().err
    monkeypatch.delenv("TESSERA_TOKEN_FILE")
    monkeypatch.setenv("HOME", str(rob))
    assert main(["runs"]) == 1 and "who have a token" in capsys.readouterr().err
    monkeypatch.setenv("TESSERA_TOKEN", "tsr_wrong")
    assert main(["runs"]) == 1
    said = capsys.readouterr().err
    assert "unknown, expired or revoked" in said and "tsr_wrong" not in said


def test_training_in_this_process_is_no_matter_of_elsewhere(capsys, rob: Path, colours: Path):
    (rob / "hues.csv").write_bytes(colours.read_bytes())
    (rob / "run.yaml").write_text(YAML)
    assert main(["train", str(rob / "run.yaml"), "--here"]) == 1
    assert "Leave out --here" in capsys.readouterr().err


def test_within_the_whole_application_a_session_opens_no_call_and_a_token_no_page(elsewhere: Served):
    """The pages' middleware lets the API through, whose own door stays shut for cookies, other hosts and origins."""
    bearer = {"Authorization": f"Bearer {elsewhere.studio.users.add_token('ann', 'test')[0]}"}
    with httpx.Client(base_url=elsewhere.url, trust_env=False, timeout=30) as caller:
        entered = caller.post("/login", data={"name": "ann", "password": PASSWORD})
        assert entered.is_redirect and caller.cookies and caller.get("/").status_code == 200
        assert caller.post("/api/v1/delete_dataset", json={"name": "x"}, headers=OWN).status_code == 401
        assert caller.get("/api/v1/runs").status_code == 401
        caller.cookies.clear()
        assert caller.get("/api/v1/runs", headers=bearer).status_code == 200
        for wrong in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert caller.get("/api/v1/runs", headers=bearer | wrong).status_code == 403
        assert caller.get("/gradio_api/info", headers=bearer).status_code == 401
        assert caller.get("/", headers=bearer).status_code == 401
