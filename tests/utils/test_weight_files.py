import argparse
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from vitrail.errors import CorruptFileError, SourceNotFoundError, UnsafeFileError, UnsupportedCheckpointError, VitrailError
from vitrail.utils import bounds, pickles
from vitrail.utils.weight_files import find_weights, read_checkpoint


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {"cls_token": torch.randn(1, 1, 8, generator=generator), "norm.weight": torch.randn(8, generator=generator).half()}


def assert_same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def write(kind: str, tensors: dict, path: Path) -> None:
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "torch zip")


KINDS = ["torch zip", "torch pickle", "npz", "safetensors"]


# Accepted files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.pth", "weights.npz", "model.safetensors", "ViT-B_16", "checkpoint.pth.tar"])
@pytest.mark.parametrize("kind", KINDS)
def test_content_decides_not_the_name(kind, name, tensors, tmp_path):
    write(kind, tensors, tmp_path / name)
    file = read_checkpoint(tmp_path / name)
    assert file.container == kind.split()[0]
    assert file.path == tmp_path / name
    assert_same(file.content, tensors) if kind != "safetensors" else assert_same(
        dict(sorted(file.content.items())), dict(sorted(tensors.items()))
    )


def test_nested_torch_files_stay_nested(tensors, tmp_path):
    torch.save({"teacher": tensors, "epoch": 3}, tmp_path / "checkpoint.pth")
    content = read_checkpoint(str(tmp_path / "checkpoint.pth")).content
    assert content["epoch"] == 3
    assert_same(content["teacher"], tensors)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])  # before and since numpy 2
@pytest.mark.parametrize("zipped", [True, False])
def test_dino_training_checkpoint(module, zipped, tensors, tmp_path, monkeypatch):
    """main_dino.py saves such files: the schedules put numpy scalars into the optimizer, and the arguments are a Namespace."""
    scalar = np.float64(0).__reduce__()[0]
    path = tmp_path / "dino_deitsmall8_pretrain_full_checkpoint.pth"
    lr = np.linspace(0, 1, 7)[3]
    saved = {
        "teacher": tensors,
        "optimizer": {"state": {}, "param_groups": [{"lr": lr, "weight_decay": np.float64(0.04), "params": [0]}]},
        "args": argparse.Namespace(arch="vit_small", patch_size=8, local_crops_scale=(0.05, 0.4)),
    }
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy 2 warns about an old name in numpy itself
        patch.setattr(scalar, "__module__", module)
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert f"{module}\nscalar".encode() in path.read_bytes()

    content = read_checkpoint(path).content
    assert_same(content["teacher"], tensors)
    assert content["args"] == saved["args"]
    assert content["optimizer"] == saved["optimizer"]


def test_the_users_own_safe_list_is_left_alone(tmp_path):
    torch.save({"args": argparse.Namespace()}, tmp_path / "args.pth")
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "args.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(tmp_path / "args.pth")
        assert set(torch.serialization.get_safe_globals()) == before | {argparse.Namespace}


def test_npz_keeps_bfloat16_and_scalars(tmp_path):
    values = torch.tensor([[1.0, -2.5], [3e38, 0.0]]).bfloat16()
    as_void = values.view(torch.int16).numpy().view("V2")  # how numpy saves ml_dtypes.bfloat16
    np.savez(tmp_path / "jax.npz", **{"params/kernel": as_void, "step": np.int64(7)}, fortran=np.asfortranarray(np.eye(2, 3)))
    content = read_checkpoint(tmp_path / "jax.npz").content
    assert torch.equal(content["params/kernel"], values)
    assert content["step"].item() == 7
    assert torch.equal(content["fortran"], torch.eye(2, 3).double())


def test_compressed_files_are_read_too(tensors, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    assert_same(read_checkpoint(tmp_path / "a.npz").content, tensors)

    torch.save(tensors, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, zipfile.ZipFile(tmp_path / "b.pth", "w") as packed:
        for member in stored.namelist():
            packed.writestr(member, stored.read(member), zipfile.ZIP_DEFLATED)
    assert_same(read_checkpoint(tmp_path / "b.pth").content, tensors)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are listed on Linux only")
@pytest.mark.parametrize("kind", ["torch zip", "safetensors"])
def test_tensors_stay_memory_mapped(kind, tmp_path):
    write(kind, {"weight": torch.zeros(1 << 18)}, tmp_path / "weights")
    tensor = read_checkpoint(tmp_path / "weights").content["weight"]
    ranges = [
        [int(bound, 16) for bound in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(tmp_path / "weights"))
    ]
    assert any(low <= tensor.data_ptr() < high for low, high in ranges)


@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", "safetensors"), ("torch zip", "bin")])
def test_shards(kind, suffix, tensors, tmp_path):
    names = [f"model-{number}-of-2.{suffix}" for number in (1, 2)]
    for name, (key, tensor) in zip(names, tensors.items(), strict=True):
        write(kind, {key: tensor}, tmp_path / name)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict(zip(tensors, names, strict=True))}))

    file = read_checkpoint(index)
    assert file.container == kind.split()[0]
    assert_same(file.content, tensors)
    first = next(iter(tensors))
    write(kind, {key: tensors[key] if key != first else tensors[first] + 1 for key in tensors}, tmp_path / names[1])
    assert_same(read_checkpoint(index).content, tensors)  # each tensor from the shard that the index names

    index.write_text(json.dumps({"weight_map": dict(zip(tensors, names, strict=True)) | {"head.weight": names[1]}}))
    with pytest.raises(CorruptFileError, match=r"lack 1 of its tensors \(head.weight\)"):
        read_checkpoint(index)
    (tmp_path / names[1]).unlink()
    with pytest.raises(SourceNotFoundError, match=f"names the shard {names[1]}, which is missing from its folder"):
        read_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"norm": "../secret.bin"}}))
    with pytest.raises(UnsafeFileError, match="outside its folder"):
        read_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {"norm": index.name}}))
    with pytest.raises(CorruptFileError, match="an index itself"):
        read_checkpoint(index)
    for name, message in {"": "outside its folder", "a" * 300: "missing", 7: "missing"}.items():
        index.write_text(json.dumps({"weight_map": {"norm": name}}))
        with pytest.raises(VitrailError, match=message):
            read_checkpoint(index)
    torch.save([1], tmp_path / "list.bin")
    index.write_text(json.dumps({"weight_map": {"norm": "list.bin"}}))
    with pytest.raises(UnsupportedCheckpointError, match="holds a list; expected a dictionary of tensors"):
        read_checkpoint(index)


def test_find_weights_prefers_safetensors(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(SourceNotFoundError, match=r"holds config\.json; expected one of model\.safetensors.*"):
        find_weights(tmp_path)
    for name in ["pytorch_model.bin.index.json", "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"]:
        (tmp_path / name).touch()
        assert find_weights(tmp_path) == tmp_path / name


# Dangerous files are refused ------------------------------------------------------------------------------


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo owned > {self.path}",)


def malicious(kind: str, payload: object, path: Path) -> None:
    if kind.startswith("protocol"):
        path.write_bytes(pickle.dumps({"model": [1, payload]}, protocol=int(kind[-1])))
    elif kind == "torch zip, protocol 4":
        torch.save({"model": payload}, path, pickle_protocol=4)
    else:
        torch.save({"model": payload}, path, _use_new_zipfile_serialization=kind == "torch zip")


MALICIOUS = ["torch zip", "torch pickle", "torch zip, protocol 4", "protocol 2", "protocol 4", "protocol 5"]


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_pickle_that_asks_for_code_is_not_run(kind, tmp_path):
    trace = tmp_path / "trace"
    malicious(kind, Payload(trace), tmp_path / "evil.pth")
    with pytest.raises(UnsafeFileError, match=rf"imports .*\b{os.system.__module__}\.system\b.*none of it(s code)? was executed"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not trace.exists()

    code = f"import pickle; pickle.load(open({str(tmp_path / 'plain')!r}, 'rb'))"  # the same payload is live elsewhere
    malicious("protocol 4", Payload(trace), tmp_path / "plain")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert trace.exists()


def test_a_whole_model_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(UnsafeFileError, match=r"imports torch\.nn\.modules\.linear\.Linear, .*save the state dict with"):
        read_checkpoint(tmp_path / "model.pth")


def test_names_are_read_off_a_protocol_4_pickle_with_its_memo(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps([os.getcwd, ("x", os.path.join), os.path.join, os.path.split], protocol=4))
    module = os.path.__name__
    with pytest.raises(UnsafeFileError, match=rf"imports {os.name}\.getcwd, {module}\.join, {module}\.split\)"):
        read_checkpoint(tmp_path / "weights.pkl")


def test_object_arrays_are_not_unpickled(tmp_path):
    trace = tmp_path / "trace"
    np.savez(tmp_path / "evil.npz", kernel=np.array([Payload(trace)], dtype=object))
    with pytest.raises(UnsafeFileError, match="kernel is an array of Python objects"):
        read_checkpoint(tmp_path / "evil.npz")
    assert not trace.exists()


# Damaged files and other formats are refused -------------------------------------------------------------


def test_nothing_there(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"There is no file .*missing\.pth"):
        read_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "a.pth").touch()
    with pytest.raises(UnsupportedCheckpointError, match=r"is a folder; expected a file. Pass one of .*\(a\.pth\)"):
        read_checkpoint(tmp_path)
    with pytest.raises(CorruptFileError, match=r"a\.pth is empty"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_is_detected_wherever_it_falls(kind, tensors, tmp_path):
    write(kind, tensors, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in {16, *range(50, len(whole) - 1, len(whole) // 60), len(whole) - 1}:
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match=r"cut\.pth.*Download it again"):
            read_checkpoint(tmp_path / "cut.pth")


def test_damaged_array_in_npz(tmp_path):
    np.savez(tmp_path / "a.npz", kernel=np.arange(1000.0))
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[3000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(CorruptFileError, match=r"damaged \(Bad CRC-32 for file 'kernel\.npy'\)"):
        read_checkpoint(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", CorruptFileError, "an HTML page.*the download was refused"),
        (b"\n<html lang='en'>404</html>", CorruptFileError, "an HTML page.*the download was refused"),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            CorruptFileError,
            "an XML page.*the download was refused",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", CorruptFileError, "run `git lfs pull`"),
        (b"\x80\x02\x00 is no opcode", CorruptFileError, "begins like a torch pickle file, but is truncated or damaged"),
        (b"\x80\x02}q\x00.", CorruptFileError, "begins like a torch pickle file, but is truncated or damaged"),
        (b"\x80\x04\xff\xff", CorruptFileError, "begins like a torch pickle file, but"),
        (b'{"model_type": "vit"}', UnsupportedCheckpointError, "without a `weight_map`"),
        (b'{"weight_map": {', CorruptFileError, "is not valid JSON"),
        (b'{"a":' * 100_000, CorruptFileError, "is not valid JSON .*recursion"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), UnsupportedCheckpointError, r"begins with b'\\x89HDF.*expected a torch file"),
        (b"0123", UnsupportedCheckpointError, "which is not a known format"),
    ],
)
def test_what_it_is_instead(content, error, message, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(error, match=message):
        read_checkpoint(tmp_path / "weights.pth")


def test_archives_of_something_else(tmp_path):
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(UnsupportedCheckpointError, match="is a tar archive"):
        read_checkpoint(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("weights.pth", b"")
    with pytest.raises(UnsupportedCheckpointError, match=r"is a zip archive of weights\.pth"):
        read_checkpoint(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as zipped:
        for member in ("script/data.pkl", "script/code/linear.py", "script/constants.pkl"):
            zipped.writestr(member, b"")
    with pytest.raises(UnsupportedCheckpointError, match="is a TorchScript program"):
        read_checkpoint(tmp_path / "script.pt")


def test_npz_of_text(tmp_path):
    np.savez(tmp_path / "a.npz", label=np.array(["cat", "dog"]))
    with pytest.raises(UnsupportedCheckpointError, match="label is not an array"):
        read_checkpoint(tmp_path / "a.npz")


def test_safetensors_whose_header_begins_as_a_pickle(tmp_path):
    """The first byte of a safetensors file is the low byte of its header's length, and may be a pickle's first byte, 0x80."""
    for length in range(1, 400):
        tensors = {"x" * length: torch.ones(2)}
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
        if (tmp_path / "model.safetensors").read_bytes()[0] == 0x80:
            assert read_checkpoint(tmp_path / "model.safetensors").container == "safetensors"
            return
    raise AssertionError("no such header was made")


@pytest.mark.parametrize("kind", ["named pipe", "socket", "device"])
def test_pipes_and_devices_are_not_opened(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    path = Path("/dev/zero" if kind == "device" else "weights.pth")
    if kind == "named pipe":
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "socket":
            listener.bind(str(path))
        with pytest.raises(UnsupportedCheckpointError, match=f"is a {kind}; expected a file"):
            read_checkpoint(path)


@pytest.mark.parametrize("kind", ["torch zip", "npz"])
def test_no_changed_byte_of_an_archive_passes(kind, tensors, tmp_path):
    """Bytes are changed one at a time: the file is refused, or its tensors are the same."""
    write(kind, tensors, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for position in range(4, len(whole), 17):
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            found = read_checkpoint(tmp_path / "damaged").content
        except VitrailError:
            continue
        assert_same(found, tensors)


def test_a_directory_without_its_last_entry_is_damage(tmp_path):
    np.savez(tmp_path / "a.npz", kernel=np.ones(3), head=np.ones(3))
    content = (tmp_path / "a.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        start = archive.start_dir
    last = content.rindex(b"PK\x01\x02")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, last - start, start, 0)
    (tmp_path / "a.npz").write_bytes(content[:last] + end)
    assert list(np.load(tmp_path / "a.npz")) == ["kernel"]
    with pytest.raises(CorruptFileError, match="its zip directory does not list what the file holds"):
        read_checkpoint(tmp_path / "a.npz")


def test_a_name_that_is_not_utf8(tensors, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.pth"))
    torch.save(tensors, tmp_path / "weights.pth")
    (tmp_path / "weights.pth").rename(path)
    assert_same(read_checkpoint(path).content, tensors)


# Bounds -------------------------------------------------------------------------------------------------------------------


def save_bomb(kind: str, path: Path) -> None:
    if kind == "npz":
        np.savez_compressed(path, kernel=np.zeros(1 << 20))
    elif kind == "names":
        safetensors.torch.save_file({str(number): torch.zeros(0) for number in range(200)}, path)
    else:
        tensor = torch.zeros(1 << 20) if kind == "deflated torch" else torch.zeros(1).expand(1 << 20)
        torch.save({"pos_embed": tensor}, path.with_suffix(".pth"), _use_new_zipfile_serialization=kind != "expanded, torch pickle")
        if kind == "deflated torch":
            with zipfile.ZipFile(path.with_suffix(".pth")) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
                for member in stored.namelist():
                    packed.writestr(member, stored.read(member))
        else:
            path.with_suffix(".pth").rename(path)


@pytest.mark.parametrize("kind", ["npz", "deflated torch", "expanded, torch zip", "expanded, torch pickle", "names"])
def test_bombs_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "ALLOWANCE", 1 << 20)
    monkeypatch.setattr(bounds, "MAX_TENSORS", 100)
    save_bomb(kind, tmp_path / "bomb.npz")
    with pytest.raises(UnsupportedCheckpointError, match=r"unpacks to .* expected at most 10 times|holds 200 tensors"):
        read_checkpoint(tmp_path / "bomb.npz")


def test_an_array_of_another_size_than_the_archive_states(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("kernel.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with pytest.raises(CorruptFileError, match=r"the header of kernel declares another size"):
        read_checkpoint(tmp_path / "a.npz")


def pickle_of(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


DOUBLED = b"h\x00h\x00\x86q\x00"  # the tuple of the last object, twice
CODEC = b"c_codecs\nencode\n" + text("a") + text("hex") + b"\x86R"
VOID = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("V1000000000") + b"\x85R\x85R"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (pickle_of(b"}", text("a"), b"q\x00", DOUBLED * 60, b"Ns"), UnsafeFileError, "would build more than 1 MB"),
        (pickle_of(b"]" * 17_000), UnsafeFileError, "would build more than 1 MB"),
        (pickle_of(b"c__builtin__\nbytearray\nK\x09\x85R"), UnsafeFileError, "imports bytearray"),
        (pickle_of(CODEC), UnsafeFileError, "calls codecs.encode in a way"),
        (pickle_of(b"(c_codecs\nencode\nl"), UnsafeFileError, "calls codecs.encode in a way"),
        (pickle_of(VOID), CorruptFileError, "a numpy dtype 'V1000000000'"),
        (pickle_of(b"(a"), CorruptFileError, "truncated or damaged"),
    ],
)
def test_pickles_that_take_memory_or_time(content, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_BUILT", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", b"3\n")
    with pytest.raises(error, match=message):
        read_checkpoint(tmp_path / "a.pth")


# Dense tensors ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*(deprecated|prototype)")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
        lambda: torch.eye(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.eye(3), torch.eye(2)]),
    ],
    ids=["sparse", "quantized", "meta", "nested"],
)
def test_only_dense_tensors(make, tmp_path):
    torch.save({"kernel": make()}, tmp_path / "a.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"holds .*tensors.*; expected dense floating point"):
        read_checkpoint(tmp_path / "a.pth")


def test_names_that_would_control_a_terminal(tmp_path):
    safetensors.torch.save_file({"\x1b[2Jkernel": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CorruptFileError, match=r"a tensor with the name '\\x1b\[2Jkernel', in which a character is not printable"):
        read_checkpoint(tmp_path / "a.safetensors")
