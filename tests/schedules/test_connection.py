"""A Hub that says nothing, or a byte now and then, is given up; tokens and passwords are in no message; nothing leaves the cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import random_schedule, small_network
from fake_hub import TOKEN, FakeHub, Repository, alone
from huggingface_hub import constants

from l3rs import LearnedSchedule, load, push_to_hub, save
from l3rs.networks import pretrained
from l3rs.networks.pretrained import WeightsError, from_hub
from l3rs.schedules.connection import endpoint, reachable, reason
from l3rs.schedules.seal import CheckpointError

SECRET = "hf_" + "x" * 30
BAD = (f"{SECRET[:9]} {SECRET[9:]}", f"{SECRET}\x00", f"{SECRET[:9]}\x0b{SECRET[9:]}", f"{SECRET}é", "hf_пароль")  # as tokens
OUTSIDE = ("../../../../victim", "/victim", "a/../../../../../victim", "..", ".", "a//b", "-x", "a\\b", "a\x07b", "a b")  # as revisions


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with alone(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def schedule() -> LearnedSchedule:
    return random_schedule(small_network(), specialist=False)


def put(hub: FakeHub, schedule: LearnedSchedule, folder: Path, **options: object) -> None:
    save(schedule, folder / "there.safetensors")
    content = {"model.safetensors": (folder / "there.safetensors").read_bytes()}
    hub.repositories["me/mine"] = Repository({"main": content}, **options)  # type: ignore[arg-type]


def said(call: Callable[[], object], within: float = 5.0) -> str:
    """The one line that a call must raise, within seconds."""
    started = time.perf_counter()
    with pytest.raises(ValueError) as error:
        call()
    assert isinstance(error.value, CheckpointError | WeightsError)
    assert time.perf_counter() - started < within
    assert "\n" not in str(error.value)
    return str(error.value)


# Time


def test_a_hub_that_sends_a_byte_now_and_then_is_given_up(
    hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, schedule, tmp_path, pause=0.1)  # for minutes
    monkeypatch.setenv("L3RS_HUB_TIMEOUT", "1")
    advice = "took longer than 1 s and was given up; try again later, or set L3RS_HUB_TIMEOUT to more seconds"
    assert said(partial(load, "me/mine")) == f"the download of me/mine {advice}"
    deadline = time.perf_counter() + 5
    while any(thread.name == "l3rs-hub" for thread in threading.enumerate()):  # it does not go on in the background
        assert time.perf_counter() < deadline
        time.sleep(0.05)
    hub.repositories["me/mine"].pause = 0
    assert load("me/mine").name == schedule.name


@pytest.mark.parametrize("dripping", [False, True])
def test_a_hub_that_says_nothing_is_as_one_that_is_not_there(
    dripping: bool, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, schedule, tmp_path)
    load("me/mine")
    hub.silent, hub.dripping = True, dripping  # with a byte of its header now and then
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    assert not reachable()
    assert load("me/mine").name == schedule.name  # from the cache
    assert f"you/mine is not in the cache {constants.HF_HUB_CACHE}, and {hub.endpoint} does not answer" in said(partial(load, "you/mine"))
    assert f"{hub.endpoint} does not answer" in said(partial(push_to_hub, schedule, "me/mine", token=TOKEN))
    assert "cannot be had from the Hub" in said(partial(from_hub, "test_resnet", 3, 5))


def test_a_network_that_never_comes_is_given_up(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.timm, "create_model", lambda *args, **options: hub.over.wait())
    monkeypatch.setattr(pretrained, "SECONDS", 0.5)
    message = said(partial(from_hub, "resnet18", 3, 5, instead="do something else"))
    assert message.startswith("the download of the pretrained weights of resnet18 took longer than 0.5 s and was given up; try again")
    assert message.endswith("; or do something else")


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_that_is_no_number_of_seconds(limit: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L3RS_HUB_TIMEOUT", limit)
    assert f"L3RS_HUB_TIMEOUT must be a number of seconds, above 0 and at most a million (got '{limit}')" in said(partial(load, "me/mine"))


# Secrets


@pytest.mark.parametrize("place", ["argument", "HF_TOKEN", "file"])
@pytest.mark.parametrize("token", BAD)
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    token: str, place: str, hub: FakeHub, schedule: LearnedSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = token if place == "argument" else None
    if place == "HF_TOKEN":
        if "\x00" in token:
            pytest.skip("no environment holds one")
        monkeypatch.setenv("HF_TOKEN", token)
    if place == "file":
        Path(constants.HF_TOKEN_PATH).parent.mkdir()
        Path(constants.HF_TOKEN_PATH).write_text(token, encoding="utf-8")
    calls: list[Callable[[], object]] = [partial(load, "me/mine", token=given), partial(push_to_hub, schedule, "me/mine", token=given)]
    if place != "argument":
        calls.append(partial(from_hub, "test_resnet", 3, 5))
    for call in calls:
        message = said(call)
        assert "the token for the Hub must be letters, digits and signs of ASCII, without spaces or line breaks; log in with" in message
        assert token[:6] not in message
    assert {request.partition(" ")[2] for request in hub.requests} <= {"", "/"}  # whether it is there; nothing else was asked


@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n"])
def test_what_surrounds_a_token_is_left_out(end: str, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    put(hub, schedule, tmp_path, access="private")
    assert load("me/mine", token=f"{TOKEN}{end}").name == schedule.name
    assert push_to_hub(schedule, "me/mine", token=f" {TOKEN}{end}").startswith(hub.endpoint)


def test_a_token_file_that_is_no_text_is_told(hub: FakeHub) -> None:
    Path(constants.HF_TOKEN_PATH).parent.mkdir()
    Path(constants.HF_TOKEN_PATH).write_bytes(SECRET.encode() + b"\xff")
    message = said(partial(load, "me/mine"))
    assert message.startswith("the token for the Hub cannot be read (")
    assert SECRET[:9] not in message


@pytest.mark.parametrize("token", [SECRET, "a-token-of-another-form"])
def test_a_hub_that_repeats_the_token_is_not_repeated(token: str, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    put(hub, schedule, tmp_path, failing=400)
    for call in (partial(load, "me/mine", token=token), partial(push_to_hub, schedule, "me/mine", token=token)):
        assert all(secret not in said(call) for secret in (token, "Bearer"))
    for error in (
        RuntimeError(f"Illegal header value b'Bearer {token}'"),
        RuntimeError(f"authorization: bearer {token[:-1]}"),
        OSError(f"for {token}\nand more"),
        ValueError("https://me:pass@hub"),
    ):
        assert all(secret not in reason(error, token) for secret in (token[:-1], "Bearer", "bearer", "pass", "more"))
    assert "hf_hub_download" in reason(TypeError("hf_hub_download() got an unexpected keyword"))  # as it should: no token


def test_a_password_in_the_address_of_the_hub_is_not_shown(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint.replace("//", "//me:pass@"))
    assert endpoint() == hub.endpoint
    message = said(partial(load, "me/nothing"))
    assert hub.endpoint in message
    assert "pass" not in message


# The cache


@pytest.mark.parametrize("revision", OUTSIDE)
def test_a_revision_cannot_name_a_file_outside_of_the_cache(revision: str, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    put(hub, schedule, tmp_path)
    hub.repositories["me/mine"].branches[revision] = hub.repositories["me/mine"].branches["main"]
    message = said(partial(load, "me/mine", revision=revision))
    assert message == f"the revision of me/mine must be a branch, a tag or a commit (got {revision!r})"
    if revision.isprintable() and " " not in revision:
        assert said(partial(load, f"me/mine@{revision}")) == message
    assert hub.requests == []
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("etag", ['"../../../../victim"', 'W/"/../../../../../victim"', '"a/../../../../../victim"', '".."', '"a\\\\b"'])
def test_a_hub_cannot_name_a_file_outside_of_the_cache(etag: str, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    put(hub, schedule, tmp_path, etag=etag)
    before = sorted(path.name for path in tmp_path.iterdir())
    for _ in range(2):
        message = said(partial(load, "me/mine", force_download=True))
        assert "the download of me/mine from http" in message
        assert "its header etag must be a name (got" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    hub.repositories["me/mine"].etag = 'W/"a-usual-one"'
    assert load("me/mine").name == schedule.name


@pytest.mark.parametrize("revision", ["v1.0", "feature/new-head", "release_2", "refs/pr/1", "größer", "fix#12", "a@b"])
def test_revisions_may_have_any_name_that_git_allows(revision: str, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    put(hub, schedule, tmp_path)
    hub.repositories["me/mine"].branches[revision] = hub.repositories["me/mine"].branches["main"]
    assert load(f"me/mine@{revision}").name == schedule.name


@pytest.mark.parametrize("given", ["x" * 300, "x" * 300 + "/y", "a\x00b", "a/b\x00", "../..", "a/..", "../b", "a/b@", "me/" + "x" * 300])
def test_ids_that_are_none(given: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(part in said(partial(load, given)) for part in ("is not a file", "a Hub id must be", "is a folder without", "there is no"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
