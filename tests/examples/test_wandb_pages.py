"""The workspace and the report of a W&B project, sent by W&B's own client to a local server with its protocol."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import run_command

pytest.importorskip("wandb_workspaces")

SCRIPT = Path(__file__).parents[2] / "examples" / "wandb_pages.py"
USER = {"id": "u", "entity": "me", "username": "me", "name": "me", "email": "", "admin": False, "flags": "{}",
        "teams": {"edges": []}, "apiKeys": {"edges": []}}  # fmt: skip
PROJECT = {"id": "p", "name": "villains", "entityName": "me", "createdAt": "", "isBenchmark": False, "user": None}


def answer(query, variables):
    if "upsertView" in query:
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": "VmlldzoxMjM=", "type": "runs", "createdAt": "2026-01-01T00:00:00", "user": USER,
                "updatedAt": "2026-01-01T00:00:00", "project": project}  # fmt: skip
        view |= {key: variables[key] for key in ("name", "displayName", "description", "spec")}
        return {"upsertView": {"view": view, "inserted": True}}
    if "ProjectInternalId" in query:
        return {"project": {"id": "p", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
    if "GetProjects" in query:
        page = {"endCursor": "c", "hasNextPage": False}
        return {"models": {"edges": [{"node": PROJECT, "cursor": "c"}], "pageInfo": page}}
    return {"viewer": USER}


@pytest.fixture
def server():
    saved = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = json.loads(body) if self.path == "/graphql" else {"query": "telemetry"}
            if "upsertView" in asked["query"]:
                saved.append(asked["variables"])
            content = json.dumps({"data": answer(asked["query"], asked.get("variables"))}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", saved
    running.shutdown()
    running.server_close()


def found(content, key):
    """All values of a key, at any depth."""
    if isinstance(content, dict):
        here = [content[key]] if key in content else []
        return here + [hit for value in content.values() for hit in found(value, key)]
    return [hit for value in content for hit in found(value, key)] if isinstance(content, list) else []


def test_both_pages_are_saved_with_every_panel_over_steps_and_runs_grouped_over_seeds(server, tmp_path):
    address, saved = server
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment = {**own, "WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
    done = run_command(SCRIPT, tmp_path, "me/villains", "evil", "kind", environment=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.startswith(f"{address}/me/villains") for line in done.stdout.splitlines()] == [True, True]
    assert [(page["entityName"], page["projectName"]) for page in saved] == [("me", "villains")] * 2
    for page in saved:
        spec = json.loads(page["spec"])
        drawn = {name for names in found(spec, "metrics") for name in names}
        assert {"persona/evil/shift", "persona/kind/expression", "steering/evil/coefficient"} <= drawn
        scattered = [config for config in found(spec, "config") if "yAxis" in config]
        assert {config["yAxis"] for config in scattered} == {
            "summary:persona/evil/expression.last", "summary:persona/kind/expression.last",
        }  # fmt: skip
        lines = [config for config in found(spec, "config") if "metrics" in config]
        assert {config["xAxis"] for config in lines} == {"trainer/global_step"}
        assert {"section": "run", "name": "group"} in [key for keys in found(spec, "grouping") for key in keys]
