"""The Hub of the tests behaves like huggingface.co for the official client."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    whoami,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, enable_progress_bars, get_session

from hub_server import Fault

WEIGHTS = bytes(range(256)) * 1000
FILES = {"config.json": b"{}", "README.md": b"# A model", "model.safetensors": WEIGHTS, "code/model.py": b"import torch"}


@pytest.fixture
def api(hub_server):
    disable_progress_bars()  # those that break off would be drawn once more when Python ends
    yield HfApi()
    enable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model", FILES)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pulled(repo_id="user/name", **options):
    """The files of a snapshot, without the one that every repository has."""
    folder = Path(snapshot_download(repo_id, **options))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.pop(".gitattributes")
    return files


# Repositories ---------------------------------------------------------------------------------------------------------


def test_who_is_logged_in(api, hub_server, monkeypatch):
    assert api.whoami()["name"] == whoami()["name"] == "user"
    hub_server.add_user("hf_other", "other")
    assert api.whoami(token="hf_other")["name"] == "other"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as raised:
        api.whoami(token="hf_wrong")
    assert raised.value.response.status_code == 401
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LocalTokenNotFoundError):
        api.whoami()


def test_create(api, hub_server):
    url = api.create_repo("user/name", private=True)
    assert (url, url.repo_id) == (f"{hub_server.url}/user/name", "user/name")
    assert api.model_info("user/name").private
    assert [commit.title for commit in api.list_repo_commits("user/name")] == ["initial commit"]
    assert api.list_repo_files("user/name") == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as raised:
        api.create_repo("user/name")
    assert raised.value.response.status_code == 409
    assert api.create_repo("user/name", exist_ok=True) == url
    assert api.create_repo("without-user") == f"{hub_server.url}/user/without-user"
    assert not api.model_info("user/without-user").private
    with pytest.raises(HfHubHTTPError, match=r'403 Forbidden: .* under the namespace "other"'):
        api.create_repo("other/name")


# Pushing --------------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_one_commit(api, hub_server, folder):
    api.create_repo("user/name")
    parent = api.model_info("user/name").sha
    options = {"commit_message": "Add", "commit_description": "all", "parent_commit": parent}
    info = api.upload_folder(folder_path=folder, repo_id="user/name", **options)
    assert hub_server.repositories["user/name"].files() == FILES
    first, second = api.list_repo_commits("user/name")
    assert (first.commit_id, first.title, first.message, first.authors) == (info.oid, "Add", "all", ["user"])
    assert second.commit_id == parent
    assert info.commit_url == f"{hub_server.url}/user/name/commit/{info.oid}"
    assert [request.body for request in hub_server.asked("PUT")] == [WEIGHTS]
    assert len(hub_server.asked("POST", "/commit/")) == 1

    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    listed = {file.path: (file.size, file.lfs and file.lfs.sha256) for file in api.get_paths_info("user/name", list(FILES))}
    assert listed == {name: (len(content), sha256 if content == WEIGHTS else None) for name, content in FILES.items()}
    siblings = {file.rfilename: file for file in api.model_info("user/name", files_metadata=True).siblings}
    assert siblings["model.safetensors"].lfs.sha256 == sha256
    # The output of `git hash-object` for the file, and for the pointer file that Git LFS specifies
    assert siblings["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert siblings["model.safetensors"].blob_id == "feedf8840b916e37f1f4f03075e345637fa518c4"
    assert {entry.path for entry in api.list_repo_tree("user/name")} == {".gitattributes", "code", *FILES} - {"code/model.py"}
    assert [entry.path for entry in api.list_repo_tree("user/name", "code")] == ["code/model.py"]


def test_what_is_there_is_not_sent_again(api, hub_server, folder):
    api.create_repo("user/name")
    first = api.upload_folder(folder_path=folder, repo_id="user/name")
    assert api.upload_folder(folder_path=folder, repo_id="user/name").oid == first.oid
    assert len(hub_server.asked("POST", "/commit/")) == 1

    write(folder, {"config.json": b"{ }", "same.safetensors": WEIGHTS})
    api.upload_folder(folder_path=folder, repo_id="user/name")
    (commit,) = hub_server.asked("POST", "/commit/")[1:]
    changed = [json.loads(line)["value"].get("path") for line in commit.body.splitlines()[1:]]
    assert sorted(changed) == ["config.json", "same.safetensors"]
    assert hub_server.repositories["user/name"].files() == {**FILES, "config.json": b"{ }", "same.safetensors": WEIGHTS}
    assert len(hub_server.asked("PUT")) == 1


def test_delete(api, hub_server):
    hub_server.put("user/name", FILES)
    api.delete_file("config.json", "user/name")
    api.delete_folder("code", "user/name")
    assert hub_server.repositories["user/name"].files().keys() == {"README.md", "model.safetensors"}
    for operation in (CommitOperationDelete("config.json"), CommitOperationDelete("code/")):
        with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
            api.create_commit("user/name", [operation], commit_message="again")


def test_ignored_files_are_left_out(api, hub_server, folder):
    api.create_repo("user/name")
    write(folder, {".gitignore": b"*.log\n", "training.log": b"loss"})
    api.upload_folder(folder_path=folder, repo_id="user/name")
    assert "training.log" not in hub_server.repositories["user/name"].files()


def test_branches_tags_and_pull_requests(api, hub_server):
    old = hub_server.put("user/name", {"config.json": b"1"})
    api.create_tag("user/name", tag="v1")
    new = hub_server.put("user/name", {"config.json": b"2"})
    api.create_branch("user/name", branch="tries/first", revision=old)
    api.upload_file(path_or_fileobj=b"branch", path_in_repo="new", repo_id="user/name", revision="tries/first")
    request = api.upload_file(path_or_fileobj=b"request", path_in_repo="new", repo_id="user/name", create_pr=True)
    assert (request.pr_revision, request.pr_url) == ("refs/pr/1", f"{hub_server.url}/user/name/discussions/1")

    assert pulled() == pulled(revision=new) == {"config.json": b"2"}
    assert pulled(revision="v1") == pulled(revision=old) == {"config.json": b"1"}
    assert pulled(revision="tries/first") == {"config.json": b"1", "new": b"branch"}
    assert pulled(revision="refs/pr/1") == pulled(revision=request.oid) == {"config.json": b"2", "new": b"request"}
    refs = api.list_repo_refs("user/name", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": old}
    assert {ref.name for ref in refs.branches} == {"main", "tries/first"}
    assert {ref.name: ref.target_commit for ref in refs.pull_requests} == {"1": request.oid}

    with pytest.raises(HfHubHTTPError) as raised:
        api.create_branch("user/name", branch="tries/first")
    assert raised.value.response.status_code == 409
    api.create_branch("user/name", branch="tries/first", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"", path_in_repo="new", repo_id="user/name", revision="no-branch")


def test_a_commit_on_top_of_another_is_refused(api, hub_server):
    parent = hub_server.put("user/name", {"config.json": b"1"})
    hub_server.put("user/name", {"config.json": b"2"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as raised:
        api.upload_file(path_or_fileobj=b"3", path_in_repo="config.json", repo_id="user/name", parent_commit=parent)
    assert raised.value.response.status_code == 412
    assert hub_server.repositories["user/name"].files() == {"config.json": b"2"}


def test_weights_that_did_not_arrive_cannot_be_committed(api, hub_server):
    api.create_repo("user/name")
    addition = CommitOperationAdd("model.safetensors", WEIGHTS)
    address = f"{hub_server.url}/lfs/user/name/{addition.upload_info.sha256.hex()}"
    assert get_session().put(address, content=WEIGHTS[:-1]).status_code == 400
    addition._upload_mode, addition._is_uploaded = "lfs", True  # the state that the client assumes
    with pytest.raises(HfHubHTTPError, match="an LFS pointer pointed to a file that does not exist"):
        api.create_commit("user/name", [addition], commit_message="without weights")


def test_a_bad_card_is_refused_before_anything_is_sent(api, hub_server, folder):
    api.create_repo("user/name")
    hub_server.card_warnings = ["empty or missing yaml metadata"]
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# A model", path_in_repo="README.md", repo_id="user/name")
    (request,) = hub_server.asked("POST", "validate-yaml")
    assert request.json == {"content": "# A model", "repoType": "model"}
    hub_server.card_warnings, hub_server.card_errors = [], ['"license" must be a string']
    with pytest.raises(ValueError, match=r'Invalid metadata in README\.md\.\n- "license" must be a string'):
        api.upload_file(path_or_fileobj=b"# Another", path_in_repo="README.md", repo_id="user/name")
    assert hub_server.repositories["user/name"].files() == {"README.md": b"# A model"}


# Uploads that break ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 128_000, 300_000])
def test_large_files_are_sent_in_parts(size, api, hub_server, folder):
    hub_server.part_size = size
    api.create_repo("user/name")
    api.upload_folder(folder_path=folder, repo_id="user/name")
    assert hub_server.repositories["user/name"].files() == FILES
    sent = [WEIGHTS[start : start + size] for start in range(0, len(WEIGHTS), size)]
    assert [request.body for request in hub_server.asked("PUT")] == sent
    assert len(hub_server.asked("POST", "/complete")) == (len(sent) > 1)


@pytest.mark.parametrize("fault", [{"status": 500}, {"after": 1000}, {"after": 0}], ids=str)
def test_the_client_tries_again(fault, api, hub_server, folder, impatient):
    hub_server.faults.append(Fault("PUT", "/lfs/", times=2, **fault))
    api.create_repo("user/name")
    api.upload_folder(folder_path=folder, repo_id="user/name")
    assert hub_server.repositories["user/name"].files() == FILES
    received = WEIGHTS[: fault.get("after")]
    assert [request.body for request in hub_server.asked("PUT")] == [received, received, WEIGHTS]
    assert len(hub_server.asked("POST", "/commit/")) == 1


@pytest.mark.parametrize("fault", [{"status": 403}, {"after": 1000, "times": 6}], ids=str)
def test_after_a_broken_upload_only_what_is_missing_is_sent(fault, api, hub_server, folder, impatient):
    write(folder, {"second.safetensors": WEIGHTS[1:]})
    api.create_repo("user/name")
    oid = hashlib.sha256(WEIGHTS[1:]).hexdigest()
    hub_server.faults.append(Fault("PUT", oid, **fault))
    with pytest.raises(RuntimeError, match=r"Error while uploading 'second\.safetensors'"):
        api.upload_folder(folder_path=folder, repo_id="user/name")
    assert hub_server.asked("POST", "/commit/") == []
    assert hub_server.repositories["user/name"].files() == {}
    sent = len(hub_server.asked("PUT"))
    api.upload_folder(folder_path=folder, repo_id="user/name")
    assert [request.path for request in hub_server.asked("PUT")[sent:]] == [f"/lfs/user/name/{oid}"]
    assert hub_server.repositories["user/name"].files() == {**FILES, "second.safetensors": WEIGHTS[1:]}


# Pulling --------------------------------------------------------------------------------------------------------------


def test_a_broken_download_goes_on_where_it_was(hub_server, impatient, monkeypatch):
    hub_server.put("user/name", {"model.safetensors": WEIGHTS})
    hub_server.faults.append(Fault("GET", "/resolve/", after=100_000))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    assert Path(hf_hub_download("user/name", "model.safetensors")).read_bytes() == WEIGHTS
    first, second = hub_server.asked("GET", "/resolve/")
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=100000-"


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "content"),
    [
        ("0-9", 206, "bytes 0-9/256000", WEIGHTS[:10]),
        ("255990-", 206, "bytes 255990-255999/256000", WEIGHTS[-10:]),
        ("256000-", 416, "bytes */256000", b""),
    ],
    ids=["first", "last", "beyond"],
)
def test_parts_of_a_file(wanted, status, content_range, content, hub_server):
    hub_server.put("user/name", {"model.safetensors": WEIGHTS})
    address = hf_hub_url("user/name", "model.safetensors")
    answer = get_session().get(address, headers={"Range": f"bytes={wanted}", **build_hf_headers()})
    assert (answer.status_code, answer.headers["Content-Range"], answer.content) == (status, content_range, content)


def test_what_is_in_the_cache_is_not_fetched(hub_server):
    hub_server.put("user/name", FILES)
    assert pulled() == FILES
    hub_server.requests.clear()
    assert pulled() == FILES
    assert hub_server.asked("GET", "/resolve/") == []
    assert len(hub_server.requests) == 1  # has the branch moved?
    hub_server.put("user/name", {"config.json": b"{ }"})
    assert pulled() == {**FILES, "config.json": b"{ }"}
    assert [request.path.rpartition("/")[2] for request in hub_server.asked("GET", "/resolve/")] == ["config.json"]


def test_who_may_read(api, hub_server, monkeypatch):
    hub_server.add_user("hf_other", "other")
    for name in ("public", "private", "gated"):
        hub_server.put(f"user/{name}", FILES)
    hub_server.repositories["user/private"].private = True
    gated = hub_server.repositories["user/gated"]
    gated.gated = True
    assert pulled("user/public") == pulled("user/private") == pulled("user/gated") == FILES

    def refusal(name, token, filename="config.json"):
        error = [None, None]
        for index, call in enumerate((api.model_info, lambda repo, token: api.hf_hub_download(repo, filename, token=token))):
            try:
                call(f"user/{name}", token=token)
            except HfHubHTTPError as raised:
                error[index] = (type(raised), raised.response.status_code)
        return tuple(error)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-of-another")
    unknown = RepositoryNotFoundError
    assert refusal("private", "hf_other") == ((unknown, 404), (unknown, 404))
    assert refusal("private", False) == ((unknown, 401), (unknown, 401))
    assert refusal("none", "hf_other") == ((unknown, 404), (unknown, 404))
    assert refusal("public", "hf_wrong") == ((HfHubHTTPError, 401), (HfHubHTTPError, 401))
    assert refusal("public", False, "none") == (None, (RemoteEntryNotFoundError, 404))
    assert refusal("gated", "hf_other") == (None, (GatedRepoError, 403))
    assert refusal("gated", False) == (None, (GatedRepoError, 401))
    gated.granted.add("other")
    assert refusal("gated", "hf_other") == (None, None)
    for call in (api.model_info, api.snapshot_download):
        with pytest.raises(RevisionNotFoundError):
            call("user/public", revision="v9")


def test_who_may_write(api, hub_server):
    hub_server.add_user("hf_other", "other")
    hub_server.put("user/name", {})
    file = {"path_or_fileobj": WEIGHTS, "path_in_repo": "model.safetensors", "repo_id": "user/name"}
    with pytest.raises(HfHubHTTPError, match=r"403 Forbidden: .*pass `create_pr=1`"):
        api.upload_file(**file, token="hf_other")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
        api.upload_file(**file, token="hf_wrong")
    with pytest.raises(RepositoryNotFoundError, match="401 Client Error"):
        api.upload_file(**file, token=False)
    assert api.upload_file(**file, token="hf_other", create_pr=True).pr_num == 1
    assert hub_server.repositories["user/name"].files() == {}
    assert hub_server.repositories["user/name"].files("refs/pr/1") == {"model.safetensors": WEIGHTS}


# Other processes ------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from huggingface_hub import create_repo, snapshot_download, upload_folder, whoami
print(whoami()["name"])
create_repo("user/name")
upload_folder(folder_path=sys.argv[1], repo_id="user/name")
print(snapshot_download("user/name"))
"""


def test_another_process(hub_server, folder, tmp_path):
    environment = hub_server.environment("hf_of_the_test")
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    user, snapshot = ended.stdout.split()
    assert user == "user"
    assert Path(snapshot).is_relative_to(environment["HF_HOME"])
    assert (Path(snapshot) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub_server.repositories["user/name"].files() == FILES
