"""Weight files made by hand: objects, names, dtypes and shapes that a state dict should not have."""

import io
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch

import vitrail
from fuzzing import judge

pytestmark = pytest.mark.usefixtures("one_thread")
PATCHES, POSITIONS, NORM = "patch_embed.proj.weight", "pos_embed", "norm.weight"


def nested(depth):
    content = []
    for _ in range(depth):
        content = [content]
    return content


def circular(tensors):
    content = dict(tensors)
    content["self"] = content
    return content


def quantized(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def with_norm(change):
    """Return a function that changes one tensor of a state dict."""
    return lambda tensors: tensors | {NORM: change(tensors[NORM])}


def all_as(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def all_renamed(rename):
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


REFUSED = {
    "a tensor": lambda tensors: tensors[NORM],
    "a list": lambda tensors: list(tensors.values()),
    "a string": lambda tensors: "weights",
    "a number": lambda tensors: 7,
    "nothing": lambda tensors: None,
    "empty": lambda tensors: {},
    "empty state dict": lambda tensors: {"state_dict": {}},
    "nested lists": lambda tensors: nested(100),
    "teacher is None": lambda tensors: {"teacher": None},
    "teacher is a tensor": lambda tensors: {"teacher": tensors[NORM]},
    "teacher is a list": lambda tensors: {"teacher": list(tensors)},
    "student only": lambda tensors: {"student": tensors},
    "integer keys": lambda tensors: dict(enumerate(tensors.values())),
    "tuple keys": lambda tensors: {(name, 0): tensor for name, tensor in tensors.items()},
    "keys of bytes": all_renamed(str.encode),
    "an empty name": lambda tensors: tensors | {"": tensors[NORM]},
    "a name of braces": lambda tensors: tensors | {"{layer}{}{0}": tensors[NORM]},
    "a name of control characters": lambda tensors: tensors | {"\x1b[31mred\n\r\x00": tensors[NORM]},
    "a name of other directions": lambda tensors: tensors | {"\u202egnp.x": tensors[NORM]},
    "a long name": lambda tensors: tensors | {"x" * 100_000: tensors[NORM]},
    "a name with many digits": lambda tensors: tensors | {f"blocks.{'9' * 5000}.norm1.weight": tensors[NORM]},
    "a name with a large number": lambda tensors: tensors | {"blocks.1000000000000.norm1.weight": tensors[NORM]},
    "names that no regex takes": all_renamed(lambda name: f"(?P<{name}"),
    "2,000 names": lambda tensors: tensors | {f"x{number}.y": tensors[NORM] for number in range(2_000)},
    "sparse": with_norm(torch.Tensor.to_sparse),
    "nested": with_norm(lambda tensor: torch.nested.nested_tensor([tensor, tensor[:3]])),
    "quantized": with_norm(quantized),
    "meta": with_norm(lambda tensor: tensor.to("meta")),
    "0 dimensions": with_norm(lambda tensor: tensor[0]),
    "0 elements": with_norm(lambda tensor: tensor[:0]),
    "20 dimensions": with_norm(lambda tensor: tensor.reshape(*[1] * 19, -1)),
    "patches of 0 pixels": lambda tensors: tensors | {PATCHES: tensors[PATCHES][..., :0]},
    "patches of 0 dimensions": lambda tensors: tensors | {PATCHES: torch.tensor(1.0)},
    "no positions": lambda tensors: tensors | {POSITIONS: tensors[POSITIONS][:, :0]},
    "positions of 0 dimensions": lambda tensors: tensors | {POSITIONS: torch.tensor(1.0)},
    "expanded positions": lambda tensors: tensors | {POSITIONS: torch.zeros(1).expand(1, 10**8 + 1, 16)},
    "expanded channels": lambda tensors: tensors | {PATCHES: torch.zeros(1).expand(16, 10**9, 8, 8)},
    "expanded widths": lambda tensors: {name: torch.zeros(1).expand(*[10**4] * tensor.dim()) for name, tensor in tensors.items()},
    "NaN": with_norm(lambda tensor: tensor * float("nan")),
    "infinity": with_norm(lambda tensor: tensor / 0),
    **{
        f"one {dtype}": with_norm(lambda tensor, dtype=dtype: tensor.to(dtype))
        for dtype in (
            torch.int64, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2
        )
    },
    **{f"all {dtype}": all_as(dtype) for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)},
}  # fmt: skip
EQUAL = {
    "nested state dicts": lambda tensors: {"model": {"model": {"model": tensors}}},
    "a key None": lambda tensors: tensors | {None: tensors[NORM]},
    "an integer key among others": lambda tensors: tensors | {7: tensors[NORM]},
    "parameters": lambda tensors: {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()},
    "transposed": lambda tensors: {
        name: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for name, tensor in tensors.items()
    },
    "one storage": lambda tensors: dict(
        zip(tensors, _views(torch.cat([tensor.flatten() for tensor in tensors.values()]), tensors.values()), strict=True)
    ),
    "wrapped": lambda tensors: {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    "a container that contains itself": circular,
}


def _views(flat, tensors):
    start = 0
    for tensor in tensors:
        yield flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()


@pytest.fixture(scope="module")
def tensors(sources):
    return torch.load(sources / "torch-zip", weights_only=True)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", [*REFUSED, *EQUAL])
def test_objects_of_torch_files(name, zipped, tensors, sources, everything_about, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save((REFUSED | EQUAL)[name](tensors), tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)

    outcome = judge(lambda: everything_about(tmp_path / "weights.pth"), everything_about(sources / "torch-zip"))
    assert outcome == ("refused" if name in REFUSED else "equal")


PICKLES = {
    "nothing but its protocol": b"\x80\x02",
    "no end": b"\x80\x02]",
    "10,000 marks": b"\x80\x02" + b"(" * 10_000 + b".",
    "10,000 nested lists": b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
    "10,000 nested tuples": b"\x80\x02)" + b"\x85" * 10_000 + b".",
    "a string of 2 GB": b"\x80\x02X\xff\xff\xff\x7f" + b"x" * 100 + b".",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"x" * 100 + b".",
    "a memo of 4 billion": b"\x80\x02]r\xff\xff\xff\xff.",
    "an unknown memo": b"\x80\x02h\x07.",
    "a list as a key": b"\x80\x02}]]s.",
    "a call of a text": b"\x80\x02U\x01x)R.",
    "a state for a list": b"\x80\x02]}b.",
    "eval": b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
    "a name of control characters": b"\x80\x02c\x1b[31m\x07os\nsystem\n)R.",
    "a name that is not UTF-8": b"\x80\x02c\xff\xfe\nx\n)R.",
    "a persistent id": b"\x80\x02U\x01xQ.",
    "a storage without a file": b"\x80\x02(X\x07\0\0\0storageX\x01\0\0\0xX\x01\0\0\0yX\x01\0\0\0zK\x01tQ.",
    "protocol 0": b"(lp0\nI1\na.",
    "protocol 255": b"\x80\xff].",
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name, zipped, tmp_path):
    path = tmp_path / "weights.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/data.pkl", PICKLES[name])
            archive.writestr("weights/version", b"3\n")
    else:
        path.write_bytes(PICKLES[name])
    assert judge(lambda: vitrail.load(path)) == "refused"


def as_npy(shape, descr="<f4", order="False", data=b"\0" * 64):
    """Return an .npy file whose header promises an array."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


ARRAYS = {
    "objects": lambda array: pickle.dumps(array),
    "a header of 10 GB": lambda array: as_npy("(2500000000,)"),
    "a shape beyond int64": lambda array: as_npy("(10**30,)"),
    "a shape of digits": lambda array: as_npy(f"({'9' * 5000},)"),
    "a negative shape": lambda array: as_npy("(-1, 16)"),
    "a shape of text": lambda array: as_npy("('x',)"),
    "a header of code": lambda array: as_npy("__import__('os')"),
    "a nested header": lambda array: as_npy("(" * 5000 + ")" * 5000),
    "a type of objects": lambda array: as_npy("(16,)", "|O"),
    "a type of dates": lambda array: as_npy("(8,)", "<M8[s]"),
    "a type of text": lambda array: as_npy("(16,)", "<U1"),
    "a type of records": lambda array: as_npy("(8,)", [("x", "<f4"), ("y", "<f4")]),
    "a type of nothing": lambda array: as_npy("(16,)", "|V0"),
    "complex": lambda array: _npy(array.astype("complex64")),
    "integers": lambda array: _npy(array.astype("int32")),
    "booleans": lambda array: _npy(array > 0),
    "no dimension": lambda array: _npy(np.float32(1)),
    "nothing": lambda array: b"",
    "NaN": lambda array: _npy(array * np.nan),
    "big-endian": lambda array: _npy(array.astype(">f4")),
    "Fortran's order": lambda array: _npy(np.asfortranarray(array)),
}
EQUAL_ARRAYS = {"Fortran's order"}


def _npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_npz(name, sources, everything_about, tmp_path):
    with np.load(sources / "npz") as whole, zipfile.ZipFile(tmp_path / "weights.npz", "w") as archive:
        for number, (key, array) in enumerate(whole.items()):
            archive.writestr(f"{key}.npy", ARRAYS[name](array) if number == 5 else _npy(array))
    outcome = judge(lambda: everything_about(tmp_path / "weights.npz"), everything_about(sources / "npz"))
    assert outcome == ("equal" if name in EQUAL_ARRAYS else "refused")
