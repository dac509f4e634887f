"""Tokens: which open what, how they end, and that what belongs to somebody is theirs."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from app.cli import command_parameters, main
from storage import types
from tests.api.conftest import House, client
from tests.support import seed
from tests.support.seed import QuietStudio


def test_a_token_opens_until_it_is_revoked_or_expires_or_its_user_is_shut_out(house: House, monkeypatch):
    users, rob = house.studio.users, house.client("rob")
    assert rob.get("/api/v1/runs").status_code == 200
    users.disable("rob")
    assert rob.get("/api/v1/runs").status_code == 401
    users.disable("rob", False)
    assert rob.get("/api/v1/runs").status_code == 200
    users.revoke_token(users.tokens("rob")[0].id)
    assert rob.get("/api/v1/runs").status_code == 401
    ria, later = house.client("ria"), types.now() + timedelta(days=91)
    monkeypatch.setattr(types, "now", lambda: later)
    assert ria.get("/api/v1/runs").status_code == 401


def test_a_token_of_another_home_opens_nothing(house: House, tmp_path):
    other = House(QuietStudio(tmp_path / "other"))
    key = {"Authorization": f"Bearer {other.keys['ann']}"}
    assert client(other.app, key).get("/api/v1/runs").status_code == 200
    assert client(house.app, key).get("/api/v1/runs").status_code == 401


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Basic YW5uOng=", "Bearer tsr_", "Bearer é", "tsr_x"])
def test_what_is_no_token_opens_nothing(house: House, given: str):
    assert client(house.app, {"Authorization": given.encode("utf-8")}).get("/api/v1/runs").status_code == 401  # type: ignore[dict-item]


def test_two_tokens_at_once_are_none(house: House):
    pair = [("Authorization", f"Bearer {house.keys[name]}") for name in ("ann", "rob")]
    assert client(house.app).get("/api/v1/runs", headers=pair).status_code == 401  # type: ignore[arg-type]


def test_wrong_tokens_are_slowed_down_by_address_and_right_ones_pass(house: House):
    wrong = {"Authorization": "Bearer tsr_wrong"}
    answers = [client(house.app, wrong, "10.9.9.9").get("/api/v1/runs") for _ in range(8)]
    assert [one.status_code for one in answers] == [401] * 5 + [429] * 3
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert client(house.app, wrong, "10.9.9.8").get("/api/v1/runs").status_code == 401
    right = {"Authorization": f"Bearer {house.keys['vic']}"}
    assert client(house.app, right, "10.9.9.9").get("/api/v1/runs").status_code == 200


def test_researchers_change_their_own_and_admins_all(house: House):
    data = seed.dataset(house.studio.home.root)
    wanted = {"spec": seed.spec(data.id, "lora").model_dump(mode="json"), "request_id": "once"}
    made = house.client("rob").post("/api/v1/submit", json=wanted)
    assert made.status_code == 200, made.text
    run = made.json()
    assert house.client("rob").post("/api/v1/submit", json=wanted).json() == run  # asked twice, queued once
    for call in ("cancel", "delete", "annotate", "resume"):
        refused = house.client("ria").post(f"/api/v1/{call}", json={"run": run})
        assert refused.status_code == 403 and "rob" in refused.json()["error"]["message"]
    assert house.client("ria").get("/api/v1/run", params={"run": run}).json()["state"] == "queued"
    assert house.client("rob").post("/api/v1/cancel", json={"run": run}).json()["state"] == "cancelled"
    assert house.client("ann").post("/api/v1/delete", json={"run": run}).status_code == 200
    assert house.client("rob").get("/api/v1/run", params={"run": run}).status_code == 404


def test_a_parcel_is_its_senders_alone(house: House):
    parcel = house.client("rob").post("/api/v1/files").json()["parcel"]
    assert house.client("rob").put(f"/api/v1/files/{parcel}/a.csv", content=b"a,b\n1,2\n").status_code == 200
    for other in ("ria", "ann"):
        caller = house.client(other)
        assert caller.get(f"/api/v1/files/{parcel}/a.csv").status_code == 404
        assert caller.put(f"/api/v1/files/{parcel}/a.csv", content=b"x").status_code == 404
        assert caller.delete(f"/api/v1/files/{parcel}").status_code == 404
        assert caller.post("/api/v1/upload", json={"source": f"{parcel}/a.csv"}).status_code == 404
    assert house.client("rob").get(f"/api/v1/files/{parcel}/a.csv").json() == {"received": 8}
    assert house.client("vic").post("/api/v1/files").status_code == 403
    assert client(house.app).post("/api/v1/files").status_code == 401


def test_the_command_makes_lists_and_revokes_them(house: House, capsys):
    home = ["--home", str(house.studio.home.root)]
    assert main([*home, "tokens", "create"]) == 1
    assert "--user" in capsys.readouterr().err
    assert main([*home, "tokens", "create", "--user", "rob", "--label", "laptop", "--expires", "7"]) == 0
    told = capsys.readouterr()
    key = told.out.strip()
    assert key.startswith("tsr_") and len(key) > 40 and key not in told.err
    caller = client(house.app, {"Authorization": f"Bearer {key}"})
    assert caller.get("/api/v1/runs").status_code == 200
    assert main([*home, "tokens", "--user", "rob", "--json"]) == 0
    listed = capsys.readouterr().out
    newest = json.loads(listed)[0]
    assert newest["label"] == "laptop" and key not in listed
    assert main([*home, "tokens", "revoke", str(newest["id"])]) == 0
    assert caller.get("/api/v1/runs").status_code == 401


def test_no_option_takes_a_token():
    """What stands on a command line is seen by everybody on the machine."""
    assert not [
        option for options in command_parameters().values() for option in options if re.search("token(?!s)", option)
    ]
