"""Schedules go to a Hub and come back to the same bits; and whatever can be wrong on the way is said, with what to do, at once."""

from __future__ import annotations

import gc
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import random_schedule, small_network, train
from environments import linked, python
from fake_hub import TOKEN, FakeHub, Repository, alone, point_to, serving
from huggingface_hub import constants
from safetensors.torch import save_file

from l3rs import L3RS, LearnedSchedule, learners, load, push_to_hub, save_pretrained
from l3rs.cli import main
from l3rs.learned.weights import LearnedWeights, starting_weights
from l3rs.schedules.connection import reachable
from l3rs.schedules.find import GENERALIST, save
from l3rs.schedules.seal import CheckpointError

PAGE = Path(__file__).parent.parent.parent / "docs" / "hub.md"


@pytest.fixture(scope="module", autouse=True)
def no_socket_is_left() -> Iterator[None]:
    """Those that are left open warn when they are collected, and warnings are errors."""
    yield
    gc.collect()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with alone(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a Hub that does not answer."""
    with serving() as server:
        endpoint = server.endpoint
    point_to(monkeypatch, endpoint, tmp_path / "home")
    return endpoint


@pytest.fixture
def schedule() -> LearnedSchedule:
    return replace(random_schedule(small_network()), name="mine")


def on_the_hub(hub: FakeHub, learned: LearnedSchedule | LearnedWeights, folder: Path, name: str = "me/mine", **options: object) -> bytes:
    """Puts a schedule there, past all uploading; gives its file."""
    learned.write(folder / "there.safetensors")
    content = (folder / "there.safetensors").read_bytes()
    hub.repositories[name] = Repository({"main": {"model.safetensors": content}}, **options)  # type: ignore[arg-type]
    return content


def same(a: LearnedSchedule, b: LearnedSchedule) -> bool:
    return torch.equal(a.theta, b.theta) and (a.config, a.layers, a.name) == (b.config, b.layers, b.name)


def said(call: object, *arguments: object, **options: object) -> str:
    """What the CheckpointError says that a call must raise, within seconds."""
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as error:
        call(*arguments, **options)  # type: ignore[operator]
    assert time.perf_counter() - started < 5
    return str(error.value)


# There and back


def test_what_is_pushed_is_loaded_to_the_same_bits(hub: FakeHub, schedule: LearnedSchedule) -> None:
    address = push_to_hub(schedule, "me/mine", token=TOKEN, commit_message="the first one")
    assert address.startswith(f"{hub.endpoint}/me/mine/commit/")
    assert hub.messages == ["the first one"]
    assert sorted(hub.repositories["me/mine"].branches["main"]) == ["README.md", "model.safetensors"]
    assert all(same(schedule, back) for back in (load("me/mine"), load("me/mine@main"), load("me/mine")))
    assert sum(request.startswith("GET /me/mine") for request in hub.requests) == 1  # then it is in the cache


@pytest.mark.parametrize("kind", ["celo2-base", "celo"])
def test_weights_of_other_optimizers_too(kind: str, hub: FakeHub) -> None:
    weights = starting_weights(kind, 0.02, "others", seed=3)
    push_to_hub(weights, "others", token=TOKEN)  # to the account whose token it is
    back = learners.load("me/others")
    assert torch.equal(back.theta, weights.theta)
    assert (back.kind, back.lr, back.name) == (kind, 0.02, "others")
    assert isinstance(learners.load("me/others"), LearnedWeights)
    assert 'learners.load("me/others")' in hub.repositories["me/others"].branches["main"]["README.md"].decode()
    assert f"holds a {kind}, not a schedule of L3RS; l3rs.learners.load reads it" in said(load, "me/others")


def test_an_optimizer_takes_an_id_and_auto_asks_nobody(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    on_the_hub(hub, schedule, tmp_path)
    network = small_network()
    L3RS(network.named_parameters(), 3)
    assert hub.requests == []
    optimizer = L3RS(network.named_parameters(), 3, learned="me/mine")
    train(network, optimizer, range(3))
    assert optimizer.learned is not None
    assert torch.equal(optimizer.learned.theta, schedule.theta)


def test_revisions(hub: FakeHub, schedule: LearnedSchedule) -> None:
    push_to_hub(schedule, "me/mine", token=TOKEN)
    first = hub.repositories["me/mine"].commit("main")
    newer = replace(schedule, theta=schedule.theta + 1)
    push_to_hub(newer, "me/mine", token=TOKEN, branch="newer")
    push_to_hub(newer, "me/mine", token=TOKEN, branch="newer")  # which is there by now
    assert same(load("me/mine"), schedule)
    assert same(load("me/mine@newer"), newer)
    assert same(load("me/mine", revision="newer"), newer)
    assert same(load(f"me/mine@{first}"), schedule)
    assert "no revision oldest: leave it out, or take a branch" in said(load, "me/mine@oldest")
    assert "names a revision, and revision is 'main'" in said(load, "me/mine@newer", revision="main")
    push_to_hub(newer, "me/mine", token=TOKEN)
    assert same(load("me/mine"), newer)  # main has moved on, and the cache is not in the way


def test_private_and_gated(hub: FakeHub, schedule: LearnedSchedule, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(schedule, "me/secret", private=True, token=TOKEN)
    assert hub.repositories["me/secret"].access == "private"
    message = said(load, "me/secret")
    assert "there is no me/secret, neither as a path here nor on http" in message
    assert "if it is private there, log in with `hf auth login`, or set HF_TOKEN" in message
    assert same(load("me/secret", token=TOKEN), schedule)
    hub.repositories["me/gated"] = replace(hub.repositories["me/secret"], access="gated")
    assert f"is gated: ask for access on {hub.endpoint}/me/gated, then log in" in said(load, "me/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert same(load("me/gated"), schedule)


# What can be wrong


def test_nothing_there(hub: FakeHub) -> None:
    assert "there is no me/nothing, neither as a path here nor on" in said(load, "me/nothing")
    hub.repositories["me/empty"] = Repository()
    assert "me/empty on http" in (message := said(load, "me/empty"))
    assert "has no model.safetensors, which is where save_pretrained puts a learned schedule" in message


@pytest.mark.parametrize(("status", "advice"), [(403, "refuses me/mine (HTTP 403): log in with"), (501, "(HTTP 501); try again later")])
def test_refusals(status: int, advice: str, hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    on_the_hub(hub, schedule, tmp_path, failing=status)
    assert advice in said(load, "me/mine")


def test_a_file_of_something_else(hub: FakeHub, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "network.safetensors")
    hub.repositories["me/network"] = Repository({"main": {"model.safetensors": (tmp_path / "network.safetensors").read_bytes()}})
    message = said(load, "me/network")
    assert message.startswith("me/network on the Hub cannot be used: ")
    assert "holds no l3rs metadata: it is some other safetensors file. Choose another repository" in message
    assert "is some other safetensors file" in said(learners.load, "me/network")


def test_a_download_that_is_cut_off(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    on_the_hub(hub, schedule, tmp_path, cut=100)
    assert "the download of me/mine from http" in (message := said(load, "me/mine"))
    assert message.endswith("; try again")
    hub.repositories["me/mine"].cut = 0
    assert same(load("me/mine"), schedule)  # the piece was not kept


def test_a_damaged_cache_is_repaired(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    content = on_the_hub(hub, schedule, tmp_path)
    load("me/mine")
    file = next((tmp_path / "home" / "hub").glob("models--me--mine/blobs/*"))
    file.write_bytes(content[:-100])
    message = said(load, "me/mine")
    assert "may be truncated" in message
    assert "load(..., force_download=True) repeats it" in message
    assert same(load("me/mine", force_download=True), schedule)
    assert same(load("me/mine"), schedule)


def test_offline(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_hub(hub, schedule, tmp_path)
    asked = "me/mine is not in the cache .*/home/hub, and HF_HUB_OFFLINE or local_files_only forbids to fetch it: load it once without"
    assert re.fullmatch(asked, said(load, "me/mine", local_files_only=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert re.fullmatch(asked, said(load, "me/mine"))
    assert "unset it, or use save_pretrained for a folder" in said(push_to_hub, schedule, "me/mine", token=TOKEN)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load("me/mine")
    requests = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(load("me/mine"), schedule)
    assert "Leave force_download out" in said(load, "me/mine", force_download=True)
    assert len(hub.requests) == requests


def test_no_network(nowhere: str, schedule: LearnedSchedule, tmp_path: Path) -> None:
    assert not reachable()
    assert f"and {nowhere} does not answer: check the network, or set HF_ENDPOINT" in said(load, "me/mine")
    assert f"{nowhere} does not answer: check the network, or HF_ENDPOINT" in said(push_to_hub, schedule, "me/mine", token=TOKEN)
    folder = tmp_path / "home" / "hub" / "models--me--mine"  # what was downloaded before, as huggingface_hub lays it out
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save(schedule, folder / "snapshots" / ("0" * 40) / "model.safetensors")
    assert same(load("me/mine"), schedule)


def test_a_proxy_is_what_has_to_answer(hub: FakeHub, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(**environment: str) -> bool:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        huggingface_hub.close_session()  # which has read the environment
        return reachable()

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    assert not answers()
    assert answers(http_proxy=hub.endpoint)
    assert not answers(http_proxy=nowhere.removeprefix("http://"))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    assert answers(no_proxy="127.0.0.1")


def test_uploads_that_are_refused(hub: FakeHub, schedule: LearnedSchedule) -> None:
    advice = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write to what you or your organization own"
    for options in ({}, {"token": "hf_wrong"}):
        assert advice in said(push_to_hub, schedule, "me/mine", **options)
    assert advice in (message := said(push_to_hub, schedule, "you/mine", token=TOKEN))
    assert "refuses to write you/mine" in message
    assert "the branch goes into branch=" in said(push_to_hub, schedule, "me/mine@branch", token=TOKEN)
    with pytest.raises(TypeError, match="licence"):
        push_to_hub(schedule, "me/mine", token=TOKEN, model_card_kwargs={"licence": "mit"})
    assert hub.repositories == {}


# Names and paths


def test_shipped_names_come_first_then_paths_then_ids(
    hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on_the_hub(hub, replace(schedule, name="of the Hub"), tmp_path, "runs/mine")
    assert load("runs/mine").name == "of the Hub"
    requests = len(hub.requests)
    save_pretrained(schedule, "runs/mine")
    save_pretrained(schedule, "icons-generalist")
    assert load("runs/mine").name == "mine"
    assert load("icons-generalist").layers == ()
    assert load(Path("icons-generalist")).name == load("./icons-generalist").name == "mine"
    for path in ("runs/nothing.safetensors", Path("runs/nothing"), "./runs/nothing", "a/b/c", "nothing", "me/mi ne"):
        message = said(load, path)
        assert f"{path} is not a file; a learned schedule is one of icons-resnet34, {GENERALIST}, " in message
    assert len(hub.requests) == requests


def test_folders_without_a_schedule_name_what_they_hold(tmp_path: Path, schedule: LearnedSchedule) -> None:
    assert "is a folder without model.safetensors, which save_pretrained writes; give a file of it (none)" in said(load, tmp_path)
    save(schedule, tmp_path / "mine.safetensors")
    assert "give a file of it (mine.safetensors)" in said(load, str(tmp_path))
    for name in ("state-000001", "state-000002", "state-000003", "theta-00000", "theta-00001"):  # as in the folder of a meta-training
        save(schedule, tmp_path / f"{name}.safetensors")
    save(schedule, tmp_path / "vehicles.safetensors")
    assert "give a file of it (mine.safetensors, vehicles.safetensors, state-000001" in said(load, tmp_path)


# Folders


def test_a_folder_is_saved_and_loaded(tmp_path: Path, schedule: LearnedSchedule) -> None:
    save_pretrained(schedule, tmp_path / "a" / "folder")
    assert same(load(tmp_path / "a" / "folder"), schedule)
    assert same(load(str(tmp_path / "a" / "folder" / "model.safetensors")), schedule)
    (tmp_path / "file").write_text("x")
    assert "cannot be written (Not a directory); choose another folder" in said(save_pretrained, schedule, tmp_path / "file" / "folder")


def test_a_folder_on_a_full_disk(tmp_path: Path, schedule: LearnedSchedule) -> None:
    save_pretrained(schedule, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # bytes of a file: a real error of the system
    try:
        message = said(save_pretrained, replace(schedule, name="other"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.startswith(f"{tmp_path} cannot be written (")
    assert same(load(tmp_path), schedule)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "model.safetensors"]


def test_a_curve_that_does_not_fit_leaves_the_old_one(tmp_path: Path, schedule: LearnedSchedule) -> None:
    curve = tmp_path / "run" / "curve.png"
    curve.parent.mkdir()
    curve.write_bytes(b"old")
    schedule.write(curve.with_name("model.safetensors"))
    learned, folder = load(curve.parent), tmp_path / "folder"
    save_pretrained(learned, folder)
    curve.write_bytes(bytes(10**6))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 10**5, before[1]))
    try:
        assert "cannot be written (File too large)" in said(save_pretrained, learned, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (folder / "curve.png").read_bytes() == b"old"


# Commands


def test_the_list(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["name", "optimizer", "fits", "directions", "meta-parameters", "generation", "meta-validation"]
    (row,) = [line.split() for line in lines if line.startswith("  icons-resnet34-paper ")]
    assert " ".join(row) == "icons-resnet34-paper L3RS resnet34, 110 layers by name sgd, adam 4,390 40 0.878"
    assert "  none; l3rs info OWNER/NAME fetches one" in lines
    assert any(line.startswith("  icons   resnet34 at width 16, pretrained on 200 classes: 0.792") for line in lines)
    on_the_hub(hub, schedule, tmp_path)
    on_the_hub(hub, starting_weights("celo2-base", None, "c", 0), tmp_path, "me/celo2")
    save_file({"weight": torch.zeros(2)}, tmp_path / "network.safetensors")
    hub.repositories["me/network"] = Repository({"main": {"model.safetensors": (tmp_path / "network.safetensors").read_bytes()}})
    load("me/mine")
    load(f"me/mine@{hub.repositories['me/mine'].commit('main')}")
    learners.load("me/celo2")
    said(load, "me/network")
    requests = len(hub.requests)
    main(["list"])
    cached = capsys.readouterr().out.partition("From the Hub")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split()[:2] for line in cached] == [["me/celo2", "celo2-base"], ["me/mine", "L3RS"]]
    assert len(hub.requests) == requests


def test_info_of_an_id(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_the_hub(hub, schedule, tmp_path)
    main(["info", "me/mine"])
    assert "mine: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["info", "me/nothing"])
    assert "there is no me/nothing, neither as a path here nor on" in capsys.readouterr().err


def test_what_pip_brings_without_extras_is_enough(hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path) -> None:
    schedule.write(tmp_path / "mine.safetensors")
    code = f"""
import l3rs, torch
mine = l3rs.load({str(tmp_path / "mine.safetensors")!r})
print(l3rs.push_to_hub(mine, "me/mine", token={TOKEN!r}))
assert torch.equal(l3rs.load("me/mine").theta, mine.theta)
"""
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*", "no_proxy": "*"}
    done = python(linked(tmp_path / "libraries"), "-c", code, **env)
    assert done.stdout.startswith(f"{hub.endpoint}/me/mine/commit/"), done.stderr


# The page


def test_every_block_of_the_page_runs(
    hub: FakeHub, schedule: LearnedSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in one folder with the files of a meta-training run, logged in to the Hub as `me`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "run").mkdir()
    save(schedule, tmp_path / "run" / "photos-resnet34.safetensors")
    (tmp_path / "run" / "curve.png").write_bytes(b"a picture")
    namespace: dict[str, object] = {"model": small_network()}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} == {"sh", "python"}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(PAGE), "exec"), namespace)
        for line in block.splitlines() if language == "sh" else ():
            main(line.partition("#")[0].split()[1:])
    assert sorted(hub.repositories["me/photos"].branches["main"]) == ["README.md", "curve.png", "model.safetensors"]
    assert "me/photos" in capsys.readouterr().out
