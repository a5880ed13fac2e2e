"""The commands of an operator, against a real server."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esr_trainer.command_line import UsageError, main
from serving import Query, Retriever
from serving.__main__ import Serving
from serving.errors import ServingError
from tests.conftest import last_json, started
from tests.serving.live import publish
from tests.serving.test_security import TOKEN, authority, certificate


def command(*arguments: object) -> int:
    return main(Serving, "python -m serving", [*map(str, arguments)], refusals=(UsageError, ServingError))


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert command(*arguments, "--json") == 0
    return last_json(capsys.readouterr().out)


def test_a_draw_is_shown_with_its_propensities(server: str, bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--context-id", "5", "-k", "4", "--seed", "3", "--address", server)
    first = Retriever.open(bundles).retrieve(Query("5", 4, seed=3))
    found = result(capsys, "retrieve", *options)
    assert found["item_ids"] == first.item_ids
    assert found["inclusion_propensities"] == list(first.inclusion_propensities)
    without = result(
        capsys, "retrieve", "--context-id", "5", "-k", "4", "--exclude", "7", "--exclude", "8", "--address", server
    )
    assert not {"7", "8"} & set(without["item_ids"])


def test_versions_are_listed_switched_and_rolled_back(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[int], str]
) -> None:
    root, token = tmp_path / "bundles", tmp_path / "token"
    shutil.copytree(bundles, root)
    token.write_text(TOKEN)
    publish(root, 2)
    publish(root, 3, lambda directory: (directory / "items.faiss").unlink())
    arguments = ("--admin-port", "0", "--admin-token-file", str(token), "--pin", "1")
    with started(root, *arguments) as (_, facts):
        reach = ("--address", facts["admin_address"], "--token-file", token)
        listed = result(capsys, "versions", "list", *reach)
        assert (listed["active_version"], listed["previous_version"], listed["follows_latest"]) == (1, 0, False)
        assert [version["state"] for version in listed["versions"]] == ["active", "available", "available"]
        assert result(capsys, "versions", "load", 2, *reach)["state"] == "loaded"
        assert result(capsys, "versions", "activate", 2, *reach)["state"] == "active"
        assert "DATA_LOSS" in refused(command("versions", "load", 3, *reach))
        listed = result(capsys, "versions", "list", *reach)
        assert (listed["active_version"], listed["previous_version"]) == (2, 1)
        assert listed["versions"][2]["problem"] == "items.faiss is missing"
        assert result(capsys, "versions", "roll-back", *reach)["version"] == 1
        assert "NOT_FOUND" in refused(command("versions", "activate", 9, *reach))
        assert "UNAUTHENTICATED" in refused(command("versions", "list", "--address", facts["admin_address"]))


def test_a_server_behind_tls_and_a_token_is_reached(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[int], str]
) -> None:
    authority(tmp_path, "ours")
    certificate(tmp_path, "server", "ours")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    arguments = ("--tls-certificate", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key")
    with started(bundles, *map(str, arguments), "--token-file", str(token)) as (_, facts):
        reach = ("--address", facts["address"], "--tls-ca", tmp_path / "ours.pem")
        retrieve = ("retrieve", "--context-id", "5", "-k", "3")
        assert len(result(capsys, *retrieve, *reach, "--token-file", token)["item_ids"]) == 3
        assert result(capsys, "health", *reach)["status"] == "SERVING"
        assert "UNAUTHENTICATED" in refused(command(*retrieve, *reach))
        assert "UNAVAILABLE" in refused(command(*retrieve, "--address", facts["address"]))
