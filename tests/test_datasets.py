"""Datasets: the digits within the package, files that lie, and downloads that go wrong."""

import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from smallpebble import datasets

NAMES = ("X_train", "y_train", "X_test", "y_test")
COLUMNS = {"mnist": 784, "cifar": 3072}
DATA = Path(
    os.environ.get("SMALLPEBBLE_TEST_DATA")
    or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)


def small_arrays(name="mnist", label_dtype=np.uint8):
    """A few random images and labels in the layout of a dataset."""
    rng = np.random.default_rng(0)
    return {
        "X_train": rng.integers(0, 256, (7, COLUMNS[name]), np.uint8),
        "y_train": np.array([0, 9, 3, 3, 1, 2, 8], label_dtype),
        "X_test": rng.integers(0, 256, (3, COLUMNS[name]), np.uint8),
        "y_test": np.array([5, 9, 0], label_dtype),
    }


def npz_bytes(arrays, save=np.savez_compressed):
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(text, version=(1, 0)):
    """The start of an npy file whose header is `text`, whatever it claims."""
    text = text.encode() + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name, content) pairs; unlike np.savez it takes any content and any name twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def members_of(arrays):
    return {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}


def assert_same(loaded, arrays):
    assert len(loaded) == len(NAMES)
    for name, array in zip(NAMES, loaded, strict=True):
        assert array.dtype == arrays[name].dtype, name
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def refused(folder, content, match, name="mnist"):
    """`content` as a user's file gives a ValueError of the given text, and stays untouched."""
    path = folder / f"{name}.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        datasets.load_data(name, folder)
    assert str(path) in str(caught.value)
    assert "Delete it" in str(caught.value)
    assert path.read_bytes() == content
    assert os.listdir(folder) == [path.name]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Neither the user's folders nor a proxy play a part, and nothing is asked of the internet."""
    monkeypatch.delenv("SMALLPEBBLE_DATA", raising=False)
    monkeypatch.setattr(datasets, "DEFAULT_SAVEDIR", tmp_path / "home" / ".smallpebble")
    monkeypatch.setattr(datasets, "_SCHEMES", ("none",))
    monkeypatch.setenv("no_proxy", "*")


# ---- arguments and folders ----


@pytest.mark.parametrize("name", ["", "MNIST", "cifar10", "../mnist", "mnist.npz"])
def test_unknown_name_names_the_choices(name):
    with pytest.raises(ValueError, match="'mnist', 'cifar', 'digits'"):
        datasets.load_data(name)


@pytest.mark.parametrize("name", [None, 3, b"mnist", ["mnist"]])
def test_name_must_be_a_string(name):
    with pytest.raises(TypeError, match="name must be a string"):
        datasets.load_data(name)


@pytest.mark.parametrize("savedir", [3, b"folder", ["folder"]])
def test_savedir_must_be_a_path(savedir):
    with pytest.raises(TypeError, match="savedir must be a path"):
        datasets.load_data("mnist", savedir)


def test_folder_is_the_argument_then_the_variable_then_the_default(tmp_path, monkeypatch):
    folders = [tmp_path / "argument", tmp_path / "variable", datasets.DEFAULT_SAVEDIR]
    for label, folder in enumerate(folders):
        folder.mkdir(parents=True)
        arrays = small_arrays()
        arrays["y_test"][:] = label
        (folder / "mnist.npz").write_bytes(npz_bytes(arrays))
    monkeypatch.setenv("SMALLPEBBLE_DATA", str(folders[1]))
    assert datasets.load_data("mnist", folders[0])[3][0] == 0
    assert datasets.load_data("mnist", str(folders[0]))[3][0] == 0
    assert datasets.load_data("mnist")[3][0] == 1
    monkeypatch.setenv("SMALLPEBBLE_DATA", "")
    assert datasets.load_data("mnist")[3][0] == 2


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(npz_bytes(small_arrays()))
    monkeypatch.setenv("SMALLPEBBLE_DATA", "~")
    assert_same(datasets.load_data("mnist"), small_arrays())


def test_no_home_folder_is_an_error_that_helps(monkeypatch):
    monkeypatch.setattr(datasets, "DEFAULT_SAVEDIR", Path("~nobody-of-this-name") / ".smallpebble")
    with pytest.raises(OSError, match="set SMALLPEBBLE_DATA"):
        datasets.load_data("mnist")


def test_import_is_light():
    code = (
        "import sys, numpy; before = set(sys.modules); from smallpebble import datasets;"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "smallpebble.datasets" in loaded
    assert not loaded & {"urllib.request", "http.client", "hashlib", "zipfile", "tqdm", "requests"}


def test_published_files_are_pinned():
    assert set(datasets.DATASETS) == {"mnist", "cifar"}
    for name, source in datasets.DATASETS.items():
        assert source["url"].startswith("https://")
        assert source["url"].endswith(f"/{name}.npz")
        assert len(bytes.fromhex(source["sha256"])) == 32


# ---- digits ----


def test_digits(tmp_path):
    folder = tmp_path / "not made"
    X_train, y_train, X_test, y_test = arrays = datasets.load_data("digits", folder)
    assert not folder.exists()
    assert [array.shape for array in arrays] == [(1437, 64), (1437,), (360, 64), (360,)]
    assert all(array.dtype == np.uint8 and array.flags.writeable for array in arrays)
    for X in (X_train, X_test):
        assert (X.min(), X.max()) == (0, 16)
    counts = np.bincount(y_train) + np.bincount(y_test)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(np.bincount(y_test) - counts * (360 / 1797)).max() < 1
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    assert digest.hexdigest() == "f0fb8f4ae5d0f727ae339c388189f30e7145837ba7c8325382d69e4283810dfe"


def test_digits_file_is_small():
    path = Path(datasets.__file__).parent / "data" / "digits.npz"
    assert path.stat().st_size < 100_000


def test_digits_can_be_learned():
    X_train, y_train, X_test, y_test = datasets.load_data("digits")
    means = np.stack([X_train[y_train == label].mean(axis=0) for label in range(10)])
    nearest = ((X_test[:, None, :] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == y_test).mean() > 0.85


# ---- files that are fine ----


@pytest.mark.parametrize("name", ["mnist", "cifar"])
def test_complete_files(name):
    if not (DATA / f"{name}.npz").is_file():
        pytest.skip(f"no {name}.npz in {DATA}; SMALLPEBBLE_TEST_DATA may name another folder")
    X_train, y_train, X_test, y_test = arrays = datasets.load_data(name, DATA)
    assert all(array.dtype == np.uint8 for array in arrays)
    assert X_train.shape == (len(y_train), COLUMNS[name])
    assert X_test.shape == (len(y_test), COLUMNS[name])
    assert set(y_train) == set(y_test) == set(range(10))
    if name == "mnist":
        assert (len(X_train), len(X_test)) == (60_000, 10_000)
        assert y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["mnist", "cifar"])
def test_fewer_rows_are_fine(tmp_path, name, save):
    (tmp_path / f"{name}.npz").write_bytes(npz_bytes(small_arrays(name), save))
    assert_same(datasets.load_data(name, tmp_path), small_arrays(name))


@pytest.mark.parametrize("dtype", ["i1", "u2", "<i4", ">i4", "<i8", ">u8"])
def test_labels_of_any_integer_dtype(tmp_path, dtype):
    (tmp_path / "mnist.npz").write_bytes(npz_bytes(small_arrays(label_dtype=dtype)))
    assert_same(datasets.load_data("mnist", tmp_path), small_arrays(label_dtype=dtype))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(-1, 3072), (-1, 32, 32, 3)])
def test_images_in_either_order_flat_or_not(tmp_path, shape, order):
    arrays = small_arrays("cifar")
    stored = dict(arrays)
    for name in ("X_train", "X_test"):
        stored[name] = np.asarray(arrays[name].reshape(shape), order=order)
    (tmp_path / "cifar.npz").write_bytes(npz_bytes(stored))
    assert_same(datasets.load_data("cifar", tmp_path), arrays)


def test_npy_version_2_and_members_in_any_order(tmp_path):
    members = members_of(small_arrays())
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, small_arrays()["X_test"], version=(2, 0))
    members["X_test.npy"] = buffer.getvalue()
    (tmp_path / "mnist.npz").write_bytes(zip_bytes(reversed(members.items())))
    assert_same(datasets.load_data("mnist", tmp_path), small_arrays())


# ---- files that are not ----


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"X_train.npy": b""},
        {"X_train": b"", "y_train": b"", "X_test": b"", "y_test": b""},
        members_of(small_arrays()) | {"extra.npy": b""},
        members_of(small_arrays()) | {"../evil.npy": b""},
        {f"a/{name}": content for name, content in members_of(small_arrays()).items()},
    ],
)
def test_wrong_members(tmp_path, members):
    refused(tmp_path, zip_bytes(members.items()), "members must be X_train.npy, y_train.npy")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("drop", [None, "y_test.npy"])
def test_duplicate_member(tmp_path, drop):
    members = [item for item in members_of(small_arrays()).items() if item[0] != drop]
    refused(tmp_path, zip_bytes([*members, members[0]]), "members must be")


def test_name_cut_by_a_null_byte(tmp_path):
    members = members_of(small_arrays())
    members["X_train.npy?evil"] = members.pop("X_train.npy")
    content = zip_bytes(members.items()).replace(b"npy?evil", b"npy\0evil")
    refused(tmp_path, content, "members must be")


@pytest.mark.parametrize(
    "name, array, match",
    [
        ("X_train", np.zeros((7, 783), np.uint8), r"shape \(n, 784\), but it is \(7, 783\)"),
        ("X_train", np.zeros((7, 32, 32, 3), np.uint8), r"shape \(n, 784\)"),
        ("X_train", np.zeros(7 * 784, np.uint8), r"shape \(n, 784\)"),
        ("X_train", np.zeros((), np.uint8), r"shape \(n, 784\), but it is \(\)"),
        ("X_test", np.zeros((0, 784), np.uint8), "X_test.npy must have 1 to 10000 rows"),
        ("X_test", np.zeros((4, 784), np.uint8), "X_test has 4 rows, but y_test has 3"),
        ("X_test", np.zeros((3, 784), np.int8), "X_test.npy must be uint8, but it is int8"),
        ("X_test", np.zeros((3, 784), np.float32), "must be uint8, but it is float32"),
        ("y_train", np.zeros((7, 1), np.uint8), r"y_train.npy must be of shape \(n,\)"),
        ("y_train", np.zeros((), np.uint8), r"y_train.npy must be of shape \(n,\)"),
        ("y_train", np.zeros(7, np.float64), "y_train.npy must be of integers, but it is float64"),
        ("y_train", np.zeros(7, bool), "must be of integers, but it is bool"),
        ("y_train", np.zeros(7, "m8[s]"), "must be of integers"),
        ("y_train", np.zeros(7, "S1"), "must be of integers"),
        ("y_train", np.zeros(7, [("a", "u1")]), "must be of integers"),
        ("y_train", np.array([0, 1, 2, 3, 4, 5, 10], np.uint8), "labels from 0 to 10"),
        ("y_test", np.array([0, -1, 2], np.int64), "labels from -1 to 2"),
        ("y_test", np.array([0, 1, 2**63], np.uint64), "labels from 0 to 9223372036854775808"),
    ],
)
def test_wrong_arrays(tmp_path, name, array, match):
    refused(tmp_path, npz_bytes(small_arrays() | {name: array}), match)


def test_too_many_rows(tmp_path):
    arrays = small_arrays()
    arrays["y_test"] = np.zeros(10_001, np.uint8)
    arrays["X_test"] = np.zeros((10_001, 784), np.uint8)
    refused(tmp_path, npz_bytes(arrays), "X_test.npy must have 1 to 10000 rows, but it has 10001")


class Bomb:
    """Unpickling this makes `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_unpickled(tmp_path, name):
    folder, mark = tmp_path / "data", tmp_path / "unpickled"
    folder.mkdir()
    objects = np.array([Bomb(mark)] * 7, object)
    refused(folder, npz_bytes(small_arrays() | {name: objects}), "must be .* it is object")
    raw = members_of(small_arrays()) | {f"{name}.npy": pickle.dumps(Bomb(mark))}
    refused(folder, zip_bytes(raw.items()), "cannot be read")
    assert not mark.exists()


@pytest.mark.parametrize(
    "header, match",
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 784)}", "1 to 60000"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 784)}", "1 to"),
        (f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**80}, 784)}}", "1 to 60000"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-7, 784)}", "1 to 60000"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (7, 1099511627776)}", "shape"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 784)}", "must have 47040"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (6, 784)}", "must have 47"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (7.0, 784)}", "cannot be read"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': [7, 784]}", "cannot be read"),
        ("{'descr': '|u1', 'fortran_order': 2, 'shape': (7, 784)}", "cannot be read"),
        ("{'descr': 'O', 'fortran_order': False, 'shape': (7, 784)}", "must be uint8"),
        ("{'descr': ('|u1', 784), 'fortran_order': False, 'shape': (7,)}", "must be uint8"),
        ("{'descr': (), 'fortran_order': False, 'shape': (7, 784)}", "cannot be read"),
        ("{'descr': '|u1', 'shape': (7, 784)}", "cannot be read"),
        ("__import__('os').abort()", "cannot be read"),
        ("(" * 1000, "cannot be read"),
        ("-" * 1000 + "1", "cannot be read"),
        (
            "{'descr': '|u1', 'fortran_order': False, 'shape': (7, 784)}" + " " * 1000,
            "cannot be read",
        ),
        ("", "cannot be read"),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_that_lie(tmp_path, header, match, version):
    members = members_of(small_arrays())
    members["X_train.npy"] = npy_header(header, version) + bytes(7 * 784)
    content = zip_bytes(members.items())
    tracemalloc.start()
    try:
        refused(tmp_path, content, match)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"\x93NUMPX" + npy_bytes(np.zeros(3, np.uint8))[6:],
        b"\x93NUMPY\x03\0" + npy_bytes(np.zeros(3, np.uint8))[8:],
        b"\x93NUMPY\xff\0" + npy_bytes(np.zeros(3, np.uint8))[8:],
        b"\x93NUMPY\x02\0\xff\xff\xff\xff{}",
    ],
)
def test_members_that_are_no_npy(tmp_path, content):
    members = members_of(small_arrays()) | {"y_test.npy": content}
    refused(tmp_path, zip_bytes(members.items()), "y_test.npy cannot be read")


def test_more_data_than_the_shape_has(tmp_path):
    members = members_of(small_arrays())
    members["X_test.npy"] += b"\0"
    refused(tmp_path, zip_bytes(members.items()), "X_test.npy must have 2480 bytes")


@pytest.mark.parametrize("name", ["X_train.npy", "y_test.npy", "extra.npy"])
def test_zip_bomb_is_not_inflated(tmp_path, name):
    bomb = zip_bytes((members_of(small_arrays()) | {name: bytes(80_000_000)}).items())
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        refused(tmp_path, bomb, "claim 80,0|members must be")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_size_in_the_directory_that_lies(tmp_path):
    members = members_of(small_arrays())
    size = len(members["y_test.npy"])
    content = zip_bytes((members | {"y_test.npy": members["y_test.npy"] + bytes(10**6)}).items())
    true, false = (size + 10**6).to_bytes(4, "little"), size.to_bytes(4, "little")
    assert content.count(true) == 2
    refused(tmp_path, content.replace(true, false), "Bad CRC-32")


def test_a_file_longer_than_any_dataset_is_not_opened_as_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZipFile", None)
    path = tmp_path / "mnist.npz"
    with open(path, "wb") as file:
        file.truncate(10**9)
    with pytest.raises(ValueError, match="1,000,000,000 bytes"):
        datasets.load_data("mnist", tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path, compression):
    content = zip_bytes(members_of(small_arrays()).items(), compression)
    refused(tmp_path, content, "neither stored nor deflated")


def test_encrypted_member(tmp_path):
    content = bytearray(npz_bytes(small_arrays()))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    refused(tmp_path, bytes(content), "encrypted")


def test_newer_zip_version(tmp_path):
    content = bytearray(npz_bytes(small_arrays()))
    content[content.index(b"PK\x01\x02") + 6] = 200
    refused(tmp_path, bytes(content), "zip file version 20.0")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x89PNG\r\n", b"<html></html>" * 100])
def test_no_zip_at_all(tmp_path, content):
    refused(tmp_path, content, "not a zip file")


def test_truncated_anywhere(tmp_path):
    content = npz_bytes(small_arrays())
    for end in range(0, len(content), len(content) // 50):
        refused(tmp_path, content[:end], "mnist")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_found_or_harmless(tmp_path, save):
    content = npz_bytes(small_arrays(), save)
    rng = np.random.default_rng(1)
    path = tmp_path / "mnist.npz"
    n_found = 0
    # All of the directory, and a sample of the rest.
    directory = range(content.index(b"PK\x01\x02"), len(content))
    for place in [*directory, *rng.integers(0, len(content), 200).tolist()]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            assert_same(datasets.load_data("mnist", tmp_path), small_arrays())
        except ValueError as error:
            assert str(path) in str(error)
            n_found += 1
    assert n_found > 200


def test_a_flipped_bit_of_an_image_is_found(tmp_path):
    arrays = small_arrays()
    content = npz_bytes(arrays, np.savez)
    for name in NAMES:
        flipped = bytearray(content)
        flipped[content.index(arrays[name].tobytes()) + arrays[name].nbytes - 1] ^= 1
        refused(tmp_path, bytes(flipped), f"Bad CRC-32 for file '{name}.npy'")


def test_damage_within_compressed_images_is_found(tmp_path):
    arrays = small_arrays()
    arrays["X_train"] = np.random.default_rng(0).geometric(0.1, (100, 784)).astype(np.uint8)
    arrays["y_train"] = np.zeros(100, np.uint8)
    content = npz_bytes(arrays)
    for place in range(10_000, 40_000, 500):  # behind the part that is read with the header
        damaged = content[:place] + b"\xff" * 50 + content[place + 50 :]
        refused(tmp_path, damaged, "Bad CRC-32|while decompressing|it ends too early")


def test_member_that_ends_too_early(tmp_path, monkeypatch):
    def read_array(archive, info):
        raise EOFError

    monkeypatch.setattr(datasets, "_read_array", read_array)
    refused(tmp_path, npz_bytes(small_arrays()), "it ends too early")


def test_headers_are_checked_before_any_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_read_array", None)
    refused(tmp_path, npz_bytes(small_arrays() | {"y_test": np.zeros(3)}), "y_test.npy")


def test_what_is_no_file_is_left_alone(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        datasets.load_data("mnist", tmp_path)
    link = tmp_path / "cifar.npz"
    try:
        link.symlink_to(tmp_path / "gone.npz")
    except OSError:
        pytest.skip("this system makes no symbolic links here")
    with pytest.raises(FileNotFoundError):
        datasets.load_data("cifar", tmp_path)
    assert link.is_symlink()


# ---- downloads ----


class Server:
    """A local server whose one answer is `self.answer(handler)`, with the dataset "mnist" on it."""

    def __init__(self, monkeypatch):
        server = self
        self.content = npz_bytes(small_arrays())
        self.paths = []
        self.answer = self.send

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.paths.append(self.path)
                server.answer(self)

            def log_message(self, *args):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        monkeypatch.setattr(datasets, "_SCHEMES", ("http",))
        digest = hashlib.sha256(self.content).hexdigest()
        source = {"url": f"{self.url}/mnist.npz", "sha256": digest}
        monkeypatch.setitem(datasets.DATASETS, "mnist", source)

    def send(self, handler, content=None, length=True, status=200, **headers):
        content = self.content if content is None else content
        handler.send_response(status)
        if length:
            n_bytes = len(content) if length is True else length
            handler.send_header("Content-Length", str(n_bytes))
        for header, value in headers.items():
            handler.send_header(header, value)
        handler.end_headers()
        handler.wfile.write(content)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    server = Server(monkeypatch)
    yield server
    server.close()


def fails(folder, match):
    """A download fails with a ConnectionError that says what to do, and leaves nothing behind."""
    with pytest.raises(ConnectionError, match=match) as caught:
        datasets.load_data("mnist", folder)
    message = str(caught.value)
    for part in (str(folder / "mnist.npz"), "SMALLPEBBLE_DATA", datasets.DATASETS["mnist"]["url"]):
        assert part in message
    assert not folder.exists() or os.listdir(folder) == []


@pytest.mark.parametrize("length", [True, False])
def test_download_once(tmp_path, server, length):
    folder = tmp_path / "made" / "by need"
    server.answer = lambda handler: server.send(handler, length=length)
    assert_same(datasets.load_data("mnist", folder), small_arrays())
    assert os.listdir(folder) == ["mnist.npz"]
    assert (folder / "mnist.npz").read_bytes() == server.content
    assert_same(datasets.load_data("mnist", folder), small_arrays())
    assert server.paths == ["/mnist.npz"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_downloaded_file_has_ordinary_permissions(tmp_path, server):
    (tmp_path / "ordinary").write_bytes(b"")
    datasets.load_data("mnist", tmp_path)
    assert (tmp_path / "mnist.npz").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_bad_file_is_not_replaced_by_a_download(tmp_path, server):
    refused(tmp_path, b"mine", "not a zip file")
    assert server.paths == []


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_only_https(tmp_path, monkeypatch, server, scheme):
    monkeypatch.undo()
    assert datasets._SCHEMES == ("https",)
    monkeypatch.setenv("no_proxy", "*")
    url = server.url.replace("http", scheme) + "/mnist.npz"
    monkeypatch.setitem(datasets.DATASETS, "mnist", {"url": url, "sha256": "0" * 64})
    fails(tmp_path, f"a {scheme} address is refused, it must be https")
    assert server.paths == []


@pytest.mark.parametrize("scheme", ["https", "ftp", "file"])
def test_redirect_to_another_scheme_is_refused(tmp_path, server, scheme):
    target = f"{scheme}://127.0.0.1/mnist.npz"
    server.answer = lambda handler: server.send(handler, b"", status=302, Location=target)
    fails(tmp_path, f"{scheme} address is refused|Redirection to url '{scheme}.*is not allowed")
    assert len(server.paths) == 1


def test_redirect_is_followed(tmp_path, server):
    def answer(handler):
        if handler.path == "/mnist.npz":
            server.send(handler, b"", status=302, Location="/elsewhere")
        else:
            server.send(handler)

    server.answer = answer
    assert_same(datasets.load_data("mnist", tmp_path), small_arrays())
    assert server.paths == ["/mnist.npz", "/elsewhere"]


def test_redirects_without_end(tmp_path, server):
    server.answer = lambda handler: server.send(
        handler, b"", status=302, Location=f"/{len(server.paths)}"
    )
    fails(tmp_path, "302")
    assert len(server.paths) < 20


def test_http_error(tmp_path, server):
    server.answer = lambda handler: server.send(handler, b"gone", status=404)
    fails(tmp_path, "404")


def test_no_server(tmp_path, server):
    server.close()
    fails(tmp_path, "(?i)refused|urlopen")


def test_answer_that_is_no_http(tmp_path, server):
    server.answer = lambda handler: handler.wfile.write(b"hello\r\n\r\n")
    fails(tmp_path, "hello")


def test_wrong_hash(tmp_path, server):
    other = bytearray(server.content)
    other[100] ^= 1
    server.answer = lambda handler: server.send(handler, bytes(other))
    fails(tmp_path, "SHA-256")


@pytest.mark.parametrize("n_sent", [0, 100, -1])
def test_server_closes_early(tmp_path, server, n_sent):
    server.answer = lambda handler: server.send(
        handler, server.content[:n_sent], length=len(server.content)
    )
    fails(tmp_path, "(?i)ended after|IncompleteRead")


def test_server_closes_early_without_a_length(tmp_path, server):
    server.answer = lambda handler: server.send(handler, server.content[:-1], length=False)
    fails(tmp_path, "SHA-256")


def test_length_above_the_limit(tmp_path, server):
    server.answer = lambda handler: server.send(handler, length=10**12)
    fails(tmp_path, "1,000,000,000,000 bytes, more than the 16,777,216 allowed")


def test_more_bytes_than_the_limit(tmp_path, server, monkeypatch):
    limit = len(server.content) - 1
    layout = datasets._LAYOUTS["mnist"]._replace(max_download=limit)
    monkeypatch.setitem(datasets._LAYOUTS, "mnist", layout)
    server.answer = lambda handler: server.send(handler, length=False)
    fails(tmp_path, f"more than the {limit:,} bytes allowed")


def test_the_limits_leave_room_for_the_published_files():
    assert datasets._LAYOUTS["mnist"].max_download > 11.5e6
    assert datasets._LAYOUTS["cifar"].max_download > 170e6


@pytest.mark.parametrize("n_sent", [None, 100])
def test_silent_server(tmp_path, server, monkeypatch, n_sent):
    monkeypatch.setattr(datasets, "_TIMEOUT", 0.1)
    done = threading.Event()

    def answer(handler):
        if n_sent is not None:
            server.send(handler, server.content[:n_sent], length=len(server.content))
        done.wait(10)

    server.answer = answer
    start = time.monotonic()
    try:
        fails(tmp_path, "timed out")
        assert time.monotonic() - start < 5
    finally:
        done.set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interruption_leaves_nothing(tmp_path, server, monkeypatch, error):
    monkeypatch.setattr(datasets, "_BLOCK", 1000)
    seen = []

    def add(self, n_bytes):
        seen.extend(os.listdir(tmp_path))
        if len(seen) == 3:
            raise error

    monkeypatch.setattr(datasets._Progress, "add", add)
    with pytest.raises(error):
        datasets.load_data("mnist", tmp_path)
    assert seen == [seen[0]] * 3
    assert seen[0].endswith(".part")
    assert os.listdir(tmp_path) == []


class FullFile(io.FileIO):
    def __init__(self, path):
        super().__init__(path, "x")

    def write(self, data):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_full_disk(tmp_path, server, monkeypatch, step):
    closed = []

    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr(datasets, "open", lambda path, mode: FullFile(path), raising=False)
    else:
        monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(datasets._Progress, "close", lambda self: closed.append(self))
    with pytest.raises(OSError, match="No space left .* set SMALLPEBBLE_DATA") as caught:
        datasets.load_data("mnist", tmp_path)
    assert caught.value.errno == 28
    assert not isinstance(caught.value, ConnectionError)
    assert len(closed) == 1
    assert os.listdir(tmp_path) == []


def test_folder_that_is_a_file(tmp_path, server):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OSError, match="cannot save mnist"):
        datasets.load_data("mnist", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_concurrent_downloads(tmp_path, server):
    together = threading.Barrier(3, timeout=10)

    def answer(handler):
        together.wait()  # all are at it before one can finish
        server.send(handler)

    server.answer = answer
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(datasets.load_data("mnist", tmp_path)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(server.paths) == 3
    for result in results:
        assert_same(result, small_arrays())
    assert os.listdir(tmp_path) == ["mnist.npz"]


def test_file_put_there_meanwhile_is_kept(tmp_path, server):
    mine = small_arrays()
    mine["y_test"][:] = 7

    def answer(handler):
        (tmp_path / "mnist.npz").write_bytes(npz_bytes(mine))
        server.send(handler)

    server.answer = answer
    assert_same(datasets.load_data("mnist", tmp_path), mine)
    assert os.listdir(tmp_path) == ["mnist.npz"]


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clock; `clock[0]` is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(datasets.time, "monotonic", lambda: now[0])
    monkeypatch.setitem(sys.modules, "tqdm", None)
    return now


def show(stream, clock, monkeypatch, total=4_000_000, seconds=5.0):
    monkeypatch.setattr(sys, "stderr", stream)
    progress = datasets._Progress("mnist.npz", total)
    for _ in range(4):
        progress.add(1_000_000)
        clock[0] += seconds
    progress.close()


def test_progress_on_a_terminal_redraws_one_line(clock, monkeypatch):
    stream = Terminal()
    show(stream, clock, monkeypatch)
    lines = [f"\rmnist.npz: {done}.0 of 4.0 MB" for done in range(1, 5)]
    assert stream.getvalue() == "".join(lines) + "\n"


def test_progress_in_a_log_is_a_line_now_and_then(clock, monkeypatch):
    stream = io.StringIO()
    show(stream, clock, monkeypatch)
    assert stream.getvalue().splitlines() == [
        f"mnist.npz: {done} of 4.0 MB" for done in ("1.0", "3.0", "4.0")
    ]


def test_progress_does_not_write_at_every_block(clock, monkeypatch):
    stream = Terminal()
    show(stream, clock, monkeypatch, seconds=0.0)
    assert stream.getvalue() == "\rmnist.npz: 1.0 of 4.0 MB\rmnist.npz: 4.0 of 4.0 MB\n"


def test_progress_without_a_total_or_a_stream(clock, monkeypatch):
    stream = io.StringIO()
    show(stream, clock, monkeypatch, total=None)
    assert stream.getvalue().splitlines()[-1] == "mnist.npz: 4.0 MB"
    show(None, clock, monkeypatch)


def test_progress_by_tqdm_where_installed(monkeypatch):
    calls = []

    class Tqdm:
        def __init__(self, **options):
            calls.append(options)

        def update(self, n):
            calls.append(n)

        def close(self):
            calls.append("close")

    module = type(sys)("tqdm")
    module.tqdm = Tqdm
    monkeypatch.setitem(sys.modules, "tqdm", module)
    stream = io.StringIO()
    show(stream, [0.0], monkeypatch, total=8)
    options = {"total": 8, "desc": "mnist.npz", "unit": "B", "unit_scale": True, "file": stream}
    assert calls == [options, *[1_000_000] * 4, "close"]
    assert stream.getvalue() == ""


def test_download_writes_progress_to_stderr_alone(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    datasets.load_data("mnist", tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "mnist.npz" in captured.err
