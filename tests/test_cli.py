"""The command line: each subcommand, wrong arguments, Ctrl-C, broken pipes, half-written files."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import smallpebble as sp
from smallpebble import cli
from smallpebble.cli import files, models, peers, plot, progress, train

ROOT = Path(sp.__file__).resolve().parents[1]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
POSIX = os.name == "posix"
COMPILED = sp.kernels.active() != "reference"

# SIGINT is what a terminal sends for Ctrl-C; who runs the tests in the background ignores it, and
# so would every child.
LAUNCH = (
    "import runpy, signal, sys;"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('smallpebble', run_name='__main__', alter_sys=True)"
)


def environment(**more):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"SMALLPEBBLE_PURE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **quiet, **more}


def command(*args):
    return [sys.executable, "-W", "error", "-c", LAUNCH, *map(str, args)]


def run(*args, cwd, **more):
    """Run ``python -m smallpebble`` as a user would."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "smallpebble", *map(str, args)],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(capsys, *args):
    """The sentence on stderr of a command line that must end with exit code 2."""
    try:
        code = cli.main([str(arg) for arg in args])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    return said


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- words ----


def test_without_a_command_there_is_help(tmp_path):
    result = run(cwd=tmp_path)
    assert result.returncode == 0
    for name in ("train", "bench", "info", "self-test"):
        assert name in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("name", ["train", "bench", "info", "self-test"])
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    assert exit.value.code == 0
    assert "usage: python -m smallpebble " + name in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"smallpebble {sp.__version__}\n"


def test_importing_the_library_imports_nothing_of_it(tmp_path):
    code = (
        "import sys, smallpebble;"
        "bad = {'smallpebble.cli', 'argparse', 'tqdm', 'matplotlib'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=tmp_path, check=True)


# ---- wrong arguments ----


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["dance"], "invalid choice: 'dance'"),
        (["train"], "required: model"),
        (["train", "rnn"], "invalid choice: 'rnn'"),
        (["train", "cnn", "--data", "imagenet"], "invalid choice: 'imagenet'"),
        (["train", "cnn", "--steps", "0"], "--steps: must be 1 or more, got 0"),
        (["train", "cnn", "--steps", "-1"], "--steps: must be 1 or more, got -1"),
        (["train", "cnn", "--steps", "many"], "--steps: expected a whole number, got 'many'"),
        (["train", "cnn", "--steps", "1.5"], "--steps: expected a whole number, got '1.5'"),
        (["train", "cnn", "--batch", "0"], "--batch: must be 1 or more, got 0"),
        (["train", "cnn", "--batch", "1e9"], "--batch: expected a whole number, got '1e9'"),
        (["train", "cnn", "--batch", "1000000000"], "more than the 1,437 training images"),
        (["train", "cnn", "--batch", str(2**63)], "more than the 1,437 training images"),
        (["train", "cnn", "--lr", "nan"], "--lr: must be a finite number above 0, got nan"),
        (["train", "cnn", "--lr", "inf"], "--lr: must be a finite number above 0, got inf"),
        (["train", "cnn", "--lr", "0"], "--lr: must be a finite number above 0, got 0"),
        (["train", "cnn", "--lr", "-1"], "--lr: must be a finite number above 0, got -1"),
        (["train", "cnn", "--lr", "fast"], "--lr: expected a number, got 'fast'"),
        (["train", "cnn", "--seed", "-1"], "--seed: must be 0 or more, got -1"),
        (["train", "cnn", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["train", "cnn", "--step", "3"], "unrecognized arguments: --step"),
        (["train", "cnn", "--save", "no/such/folder.npz"], "there is no folder"),
        (["train", "cnn", "--save", ""], "does not name a file"),
        (["train", "cnn", "--save", "a/"], "does not name a file"),
        (["train", "cnn", "--save", "."], "is not an ordinary file"),
        (["train", "cnn", "--save", "a\0b"], "cannot write"),
        (["train", "cnn", "--save", "n" * 300], "cannot write"),
        (["train", "cnn", "--plot", "no/such/folder.png"], "there is no folder"),
        (["bench", "--only", "conv3d"], "--only: 'conv3d' is unknown: choose from matmul, conv2d"),
        (["bench", "--rounds", "0"], "--rounds: must be 1 or more, got 0"),
        (["bench", "--tier", "mmx"], "--tier: unknown kernel tier 'mmx': choose one of"),
        (["bench", "--threads", "100000", "--only", "take"], "--threads: "),
        (["bench", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["bench", "--json", "no/such/folder.json"], "there is no folder"),
        (["bench", "--peer", "torch"], "expected NAME=PYTHON"),
        (
            ["bench", "--peer", "theano=python"],
            "'theano' is unknown: choose from smallpebble-3.0.5, torch",
        ),
        (["bench", "--peer", "torch=no-such-python"], "there is no interpreter 'no-such-python'"),
        (
            ["bench", "--only", "readme_cnn", "--data", "nowhere"],
            "there is no cifar.npz in nowhere",
        ),
        (["self-test", "--tier", "mmx"], "--tier: unknown kernel tier 'mmx': choose one of"),
    ],
)
def test_a_wrong_argument_gets_a_sentence(args, sentence, capsys, tmp_path):
    assert sentence in refused(capsys, *args)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_a_device_or_folder_is_left_alone(capsys, tmp_path):
    if POSIX:
        assert "not an ordinary file" in refused(capsys, "train", "mlp", "--save", os.devnull)
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    assert "not an ordinary file" in refused(capsys, "train", "mlp", "--save", "here")
    assert "there is no folder" in refused(capsys, "train", "mlp", "--save", "file/x.npz")


def test_a_folder_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    # Permissions would not do: the tests may run as root.
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "open", refuse)
    assert "Permission denied" in refused(capsys, "train", "mlp", "--save", "x.npz")


def test_missing_data_and_no_network(capsys, monkeypatch):
    def offline(name, savedir=None):
        raise ConnectionError("load_data: cannot download mnist: no network")

    monkeypatch.setattr(train, "load_data", offline)
    assert "no network" in refused(capsys, "train", "mlp", "--data", "mnist")


def test_a_damaged_data_file(capsys, monkeypatch, tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"PK nothing")
    monkeypatch.setenv("SMALLPEBBLE_DATA", str(tmp_path))
    assert "mnist.npz" in refused(capsys, "train", "mlp", "--data", "mnist")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr(models, "mlp", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train", "mlp"])


# ---- train ----


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_train_saves_what_it_trained(model, dtype, capsys, tmp_path):
    path = tmp_path / "net.npz"
    args = ["train", model, "--steps", "12", "--batch", "32", "--dtype", dtype, "--save", "net.npz"]
    assert cli.main([*args, "--lr", "0.01", "--seed", "3"]) == 0
    said = capsys.readouterr()
    assert f"Parameters: {path}" in said.out
    accuracy = float(said.out.split("Final validation accuracy: ")[1].split()[0])
    with np.load(path, allow_pickle=False) as saved:
        arrays = dict(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["net.npz"]
    about = {name: arrays.pop(name)[()] for name in ("model", "data", "steps", "seed", "accuracy")}
    assert about["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert {**about, "accuracy": 0} == {
        "model": model, "data": "digits", "steps": 12, "seed": 3, "accuracy": 0,
    }  # fmt: skip
    assert {array.dtype for array in arrays.values()} == {np.dtype(dtype)}

    # The saved numbers are the net that was measured.
    net = models.mlp(64, dtype=dtype) if model == "mlp" else models.cnn((8, 8, 1), dtype=dtype)
    assert list(net.parameters) == list(arrays)
    for name, variable in net.parameters.items():
        assert variable.shape == arrays[name].shape
        variable.array = arrays[name]
    _, _, X, y = sp.datasets.load_data("digits")
    assert (net.predict(X.astype(dtype) / 16) == y).mean() == about["accuracy"]


def test_train_is_repeatable(tmp_path, capsys):
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        cli.main(["train", "mlp", "--steps", "5", "--seed", str(seed), "--save", name])
    a, b, c = (np.load(tmp_path / name)["linear1.weights"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    "model", ["mlp", pytest.param("cnn", marks=pytest.mark.skipif(not COMPILED, reason="slow"))]
)
def test_train_learns(model, tmp_path):
    # NumPy's threads would crawl beside another process that uses all processors.
    result = run("train", model, cwd=tmp_path, OPENBLAS_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert float(said.split("Final validation accuracy: ")[1].split()[0]) >= 0.97


@pytest.mark.parametrize("data, size", [("mnist", 784), ("cifar", 3072)])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_train_on_other_data(data, size, model, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 40), ("test", 20)):
        arrays[f"X_{part}"] = rng.integers(0, 256, (n, size), np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, n).astype(np.uint8)
    np.savez(tmp_path / f"{data}.npz", **arrays)
    monkeypatch.setenv("SMALLPEBBLE_DATA", str(tmp_path))
    assert cli.main(["train", model, "--data", data, "--steps", "2", "--batch", "8"]) == 0
    assert "of 20 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "ending, start", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_plot(ending, start, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curves.{ending}"
    assert cli.main(["train", "mlp", "--steps", "3", "--plot", path.name]) == 0
    assert f"Curves: {path}" in capsys.readouterr().out
    assert path.read_bytes().startswith(start)
    assert "matplotlib.pyplot" not in sys.modules


def test_plot_of_an_unknown_kind(capsys):
    pytest.importorskip("matplotlib")
    said = refused(capsys, "train", "mlp", "--plot", "curves.npz")
    assert "'.npz'" in said
    assert ".png" in said


def test_plot_and_save_to_one_file(capsys):
    pytest.importorskip("matplotlib")
    assert "same file" in refused(
        capsys, "train", "mlp", "--plot", "x.png", "--save", "../" + Path.cwd().name + "/x.png"
    )


@pytest.mark.parametrize("args", [["train", "cnn"], ["bench"]])
def test_without_matplotlib_a_plot_is_refused_before_the_work(args, capsys, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(train, "load_data", lambda name: pytest.fail("went on"))
    said = refused(capsys, *args, "--plot", "x.png")
    assert 'pip install "smallpebble[plot]"' in said


def test_a_diverging_loss_stops_the_training(capsys, tmp_path):
    code = cli.main(["train", "mlp", "--lr", "1e30", "--save", "x.npz"])
    assert code == 1
    said = capsys.readouterr()
    assert "Try a smaller --lr" in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_not_finite_are_not_saved(capsys, tmp_path, monkeypatch):
    step = models.Model.train_step

    def overflow(model, *args):
        loss = step(model, *args)
        model.parameters["linear1.bias"].array = np.full(100, np.inf, np.float32)
        return loss

    monkeypatch.setattr(models.Model, "train_step", overflow)
    assert cli.main(["train", "mlp", "--steps", "1", "--save", "x.npz"]) == 1
    assert "no longer finite" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- Ctrl-C ----


def start_and_interrupt(*args, cwd, after=0.4):
    process = subprocess.Popen(
        command(*args),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, first + out, err


@pytest.mark.skipif(not POSIX, reason="needs signals")
def test_interrupted_training_keeps_what_it_has(tmp_path):
    more = []
    try:
        import matplotlib  # noqa: F401

        more = ["--plot", "x.png"]
    except ImportError:
        pass
    code, out, err = start_and_interrupt(
        "train", "mlp", "--steps", 1000000, "--save", "x.npz", *more, cwd=tmp_path
    )
    assert code == 130, err
    assert "Traceback" not in err
    done = int(out.split("Interrupted after step ")[1].split()[0])
    assert "Final validation accuracy" in out
    with np.load(tmp_path / "x.npz") as saved:
        assert saved["steps"] == done > 0
    assert (tmp_path / "x.png").exists() == bool(more)


@pytest.mark.skipif(not POSIX, reason="needs signals")
def test_interrupted_training_whose_reader_has_gone_keeps_what_it_has(tmp_path):
    # As in `train ... 2>&1 | tee log`, where Ctrl-C ends tee as well.
    process = subprocess.Popen(
        command("train", "mlp", "--steps", 1000000, "--save", "x.npz"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "Training" in process.stdout.readline()
    time.sleep(0.3)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 141
    with np.load(tmp_path / "x.npz") as saved:
        assert saved["steps"] > 0


def test_what_was_measured_is_said_if_it_cannot_be_saved(monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert cli.main(["train", "mlp", "--steps", "2", "--save", "x.npz"]) == 1
    said = capsys.readouterr()
    assert "Final validation accuracy" in said.out
    assert "Parameters:" not in said.out
    assert "No space left on device" in said.err


@pytest.mark.skipif(not POSIX, reason="needs signals")
def test_interrupted_bench(tmp_path):
    args = ["bench", "--only", "readme_cnn", "--rounds", 1000, "--no-peers", "--json", "x.json"]
    code, _, err = start_and_interrupt(*args, cwd=tmp_path)
    assert code == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_interrupts_are_counted_and_the_third_is_final(monkeypatch):
    with train._Interrupts() as interrupts:
        interrupts._handle(signal.SIGINT, None)
        interrupts._handle(signal.SIGINT, None)
        assert interrupts.count == 2
        with pytest.raises(KeyboardInterrupt):
            interrupts._handle(signal.SIGINT, None)


def test_an_interrupt_before_the_first_step_writes_nothing(monkeypatch, capsys, tmp_path):
    enter = train._Interrupts.__enter__

    def at_once(self):
        self.count += 1
        return enter(self)

    monkeypatch.setattr(train._Interrupts, "__enter__", at_once)
    assert cli.main(["train", "mlp", "--save", "x.npz"]) == 130
    assert "nothing is written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not POSIX, reason="needs signals")
def test_an_interrupt_of_the_last_evaluation_skips_it(monkeypatch, capsys, tmp_path):
    count = train._count_correct

    def interrupted(model, X, y, largest, stop=None):
        if stop is None:
            return count(model, X, y, largest)
        os.kill(os.getpid(), signal.SIGINT)
        return count(model, X, y, largest, stop)

    monkeypatch.setattr(train, "_count_correct", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["train", "mlp", "--steps", "3", "--save", "x.npz"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "was not measured" in capsys.readouterr().out
    assert np.isnan(np.load(tmp_path / "x.npz")["accuracy"])


def test_an_interrupt_elsewhere_is_a_sentence(monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_data", stop)
    assert cli.main(["train", "mlp"]) == 130
    assert "interrupted" in capsys.readouterr().err


# ---- files ----


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, MemoryError, OSError(28, "No space left")])
def test_an_interrupted_save_keeps_the_old_file(trouble, tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"half of the new")
        raise trouble

    with pytest.raises((KeyboardInterrupt, MemoryError, cli.CommandError)) as raised:
        files.write(path, half)
    if isinstance(trouble, OSError):
        assert raised.value.code == 1
        assert "No space left" in str(raised.value)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.skipif(not POSIX, reason="needs permissions and links")
def test_a_saved_file_keeps_its_mode_and_its_link(tmp_path):
    path, link = tmp_path / "x.npz", tmp_path / "link.npz"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    files.write(files.writable(str(link), "--save"), lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    umask = os.umask(0o027)
    try:
        files.write(tmp_path / "y.npz", lambda file: file.write(b"new"))
    finally:
        os.umask(umask)
    assert (tmp_path / "y.npz").stat().st_mode & 0o777 == 0o640


def test_objects_are_never_pickled(tmp_path):
    net = models.mlp(4, hidden=(2,))
    with pytest.raises(ValueError, match="pickle"):
        train.save(tmp_path / "x.npz", net, {"what": {"a", "set"}})
    assert not list(tmp_path.iterdir())


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_one_line(clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.open_progress(4, "step", stream) as bar:
        for i in range(1, 5):
            clock[0] += 2
            bar.update(i, "loss 0.5" + "x" * (200 if i == 2 else 0))
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    lines = text.split("\r")
    assert all(len(line) <= 80 for line in lines)
    assert lines[1] == "step 1/4  loss 0.5  0.5 steps/s  ETA 0:06"
    assert lines[-1].startswith("step 4/4  loss 0.5  0.5 steps/s  ETA 0:00")


def test_a_terminal_is_not_redrawn_all_the_time(clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.open_progress(1000, "step", stream) as bar:
        for i in range(1, 1001):
            clock[0] += 0.001
            bar.update(i)
    assert stream.getvalue().count("\r") <= 12
    assert "step 1000/1000" in stream.getvalue().split("\r")[-1]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_log_has_a_line_now_and_then(stream, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = stream()
    with progress.open_progress(1000, "step", stream) as bar:
        for i in range(1, 1001):
            clock[0] += 0.5
            bar.update(i, f"loss {1 / i:.4f}")
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert 10 <= len(lines) <= 60
    assert lines[-1] == "step 1000/1000  loss 0.0010  2 steps/s  ETA 0:00"


def test_a_result_is_printed_clear_of_the_line(clock, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.open_progress(2, "row", stream) as bar:
        bar.update(1)
        before = len(stream.getvalue())
        bar.print("a result")
        assert stream.getvalue()[before:].replace(" ", "") == "\r\r"
    assert capsys.readouterr().out == "a result\n"


def test_tqdm_is_used_where_installed(monkeypatch):
    calls = []

    class Bar:
        n = 0

        def __init__(self, **options):
            calls.append(("made", options["total"]))

        def set_postfix_str(self, text, refresh):
            calls.append(("text", text))

        def update(self, n):
            self.n += n
            calls.append(("at", self.n))

        def clear(self):
            calls.append("clear")

        def refresh(self):
            pass

        def close(self):
            calls.append("close")

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    monkeypatch.setenv("TERM", "xterm")
    with progress.open_progress(3, "step", Terminal()) as bar:
        bar.update(1, "loss 1")
        bar.print("")
        bar.update(3, "loss 2")
    expected = [("made", 3), ("text", "loss 1"), ("at", 1), "clear", ("text", "loss 2"), ("at", 3)]
    assert calls == [*expected, "close"]
    with progress.open_progress(3, "step", io.StringIO()):
        pass
    assert calls[-1] == "close"
    assert len(calls) == 7


def test_the_real_tqdm(clock, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress.open_progress(3, "step", stream) as bar:
        bar.update(3, "loss 1")
    assert "3/3" in stream.getvalue()
    assert "loss 1" in stream.getvalue()


def test_without_a_stream_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress.open_progress(3, "step") as bar:
        bar.update(3)


def test_times_are_written_as_clocks_do():
    assert [progress._clock(s) for s in (0.4, 59.6, 61, 3600)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
    ]


def test_training_into_a_log(tmp_path):
    result = run("train", "mlp", "--steps", 5, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "\r" not in result.stderr + result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("step 5/5  loss ")
    assert "accuracy" in lines[0]


@pytest.mark.skipif(not POSIX, reason="needs a pty")
def test_training_on_a_terminal(tmp_path):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("train", "mlp", "--steps", 400),
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    process.communicate(timeout=30)
    assert process.returncode == 0, shown
    assert shown.count(b"\n") == 1
    assert shown.count(b"\r") >= 2
    assert b"400/400" in shown


def test_a_broken_pipe_is_no_error(tmp_path):
    for args in (["info"], ["train", "mlp", "--steps", "3"]):
        process = subprocess.Popen(
            command(*args),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        assert process.wait(30) == 141, said
        assert "Traceback" not in said
        assert "Exception ignored" not in said


def test_names_that_the_terminal_cannot_write(tmp_path):
    name = "\N{SNOWMAN}.npz"
    result = run(
        "train", "mlp", "--steps", 1, "--save", name, cwd=tmp_path, PYTHONIOENCODING="ascii"
    )
    assert result.returncode == 0, result.stderr
    assert "\\u2603.npz" in result.stdout


# ---- bench ----


def bench(tmp_path, *args):
    assert cli.main(["bench", "--quick", "--json", "b.json", "--no-peers", *args]) == 0
    with open(tmp_path / "b.json") as file:
        return json.load(file)


def test_bench_of_kernels(tmp_path, capsys):
    report = bench(tmp_path, "--only", "take", "--only", "softmax")
    rows = {(row["kernel"], row["dtype"]) for row in report["kernels"]}
    assert rows == {(k, d) for k in ("take", "softmax") for d in ("float32", "float64")}
    assert report["nets"] == []
    assert report["config"]["kernels"] == sp.kernels.active()
    said = capsys.readouterr().out
    for row in report["kernels"]:
        assert row["case"][:30] in said
        assert row["reference_ms"] > 0 and row["rate"] > 0
        assert len(row["samples_ms"]["reference"]) >= 1
        assert ("speedup" in row) == COMPILED
        if COMPILED:
            assert row["speedup"] == pytest.approx(row["reference_ms"] / row["compiled_ms"])
            assert 0 <= row["error_of_bound"] <= 1
            assert row["error"] < 1e-4


def test_bench_sees_a_wrong_kernel(monkeypatch, tmp_path):
    from smallpebble.cli import bench as module
    from smallpebble.kernels import catalogue, reference

    kernel = catalogue.KERNELS["softmax"]
    args = kernel.bench[0][1](np.random.default_rng(0), np.dtype(np.float32))
    errors = module._errors(
        kernel, lambda *a: reference.softmax(*a) * np.float32(1.01), args, np.dtype(np.float32)
    )
    assert errors["error_of_bound"] > 1
    assert errors["error"] > 1e-4


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_bench_judges_every_kernel(long, dtype):
    """Those with several results, and those whose large cases are judged in float64, too."""
    from smallpebble.cli import bench as module
    from smallpebble.kernels import catalogue

    for kernel in catalogue.KERNELS.values():
        args = kernel.make(kernel.specs[-1], np.random.default_rng(0), dtype)
        function = getattr(sp.kernels, kernel.name)
        errors = module._errors(kernel, function, args, dtype, long)
        assert errors["error_of_bound"] <= 1, kernel.name


def test_bench_of_a_net(tmp_path, capsys):
    args = ["--only", "readme_mlp", "--rounds", "2", "--dtype", "float64"]
    report = bench(tmp_path, *args)
    train_row, evaluate_row = report["nets"]
    assert (train_row["work"], evaluate_row["work"]) == ("train", "evaluate")
    for row in report["nets"]:
        assert len(row["contenders"]) == 1 + COMPILED
        for contender in row["contenders"]:
            assert contender["ms"] > 0
            assert len(contender["samples_ms"]) == 2
    for contender in train_row["contenders"]:
        assert contender["loss_error_relative"] < 1e-9
    assert train_row["amount"] == 2 * 200 * (3 * (78400 + 10000 + 1000) - 78400)
    assert "MNIST net (readme_mlp), training step, batch 200, float64" in capsys.readouterr().out


@pytest.mark.skipif(not COMPILED, reason="needs compiled kernels")
def test_bench_of_accuracy(tmp_path, capsys):
    report = bench(tmp_path, "--only", "accuracy", "--dtype", "float32")
    assert report["kernels"] == report["nets"] == []
    gate, zoo = report["accuracy"]["gate"], report["accuracy"]["zoo"]
    kernels = {"conv2d", "conv2d_grad_images", "conv2d_grad_kernels", "matmul"}
    assert {row["kernel"] for row in gate} == {row["kernel"] for row in zoo} == kernels
    assert (len(gate), len(zoo)) == (4, 20)
    said = capsys.readouterr().out
    for row in gate + zoo:
        assert 0 < row["error_of_bound"] <= 1
        assert f"{row['error_in_u']:.2f}" in said
        assert row["tier"] == sp.kernels.active()
    for row in zoo:
        assert ("ratio" in row) == (row["kernel"] != "matmul")
        if "ratio" in row:
            assert row["ratio"] == pytest.approx(row["winograd"] / row["direct"])
            assert row["ratio"] <= row["worst_ratio"] * 1.001
            assert f"{row['ratio']:.2f}" in said


def test_accuracy_sees_wrong_kernels():
    from smallpebble.cli import accuracy
    from smallpebble.kernels import reference

    what = accuracy.ZOO["conv2d"][-1], "standard normal", "float32"
    functions = {
        "right": reference.conv2d,
        "wrong": lambda *args: reference.conv2d(*args) * np.float32(1.001),
    }
    errors = accuracy._errors(functions, "conv2d", *what)
    assert errors["right"]["bound"] < 1 < errors["wrong"]["bound"]
    assert errors["right"]["relative"] < 1e-5 < errors["wrong"]["relative"]
    with pytest.raises(ValueError, match="unknown inputs 'none'"):
        accuracy.arguments("conv2d", accuracy.ZOO["conv2d"][0], "none", "float32")


@pytest.mark.skipif(not COMPILED, reason="needs compiled kernels")
def test_bench_draws_its_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    bench(tmp_path, "--only", "take", "--plot", "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_speedups(tmp_path):
    pytest.importorskip("matplotlib")
    plot.speedups(tmp_path / "b.png", "title", [("a", 3.0), ("b", 0.5)])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_bench_of_the_reference_alone(tmp_path, capsys):
    report = bench(tmp_path, "--only", "take", "--dtype", "float32", "--tier", "reference")
    (row,) = report["kernels"]
    assert "compiled_ms" not in row
    assert report["accuracy"] == {"gate": [], "zoo": []}
    assert "Only the NumPy reference was timed" in capsys.readouterr().out


def test_bench_on_real_data(tmp_path, capsys):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (50, 784), np.uint8), np.arange(50, dtype=np.uint8) % 10
    np.savez(tmp_path / "mnist.npz", X_train=X, y_train=y, X_test=X, y_test=y)
    args = ["--only", "readme_mlp", "--rounds", "1", "--dtype", "float32", "--data", "."]
    report = bench(tmp_path, *args)
    assert report["nets"][0]["contenders"][0]["ms"] > 0


def test_bench_puts_the_threads_back(tmp_path):
    from smallpebble import config

    before = config.get_num_threads()
    args = ["--only", "take", "--dtype", "float32", "--threads", "1"]
    assert bench(tmp_path, *args)["threads"] == 1
    assert config.get_num_threads() == before


def test_what_json_does_not_know_becomes_null():
    from smallpebble.cli.files import _plain

    value = {"a": [np.float32(1.5), float("nan")], 2: (np.int64(3), True, None, Path("x"))}
    assert _plain(value) == {"a": [1.5, None], "2": [3, True, None, "x"]}


@pytest.mark.parametrize(
    "value, text",
    [(0.00123, "0.00123"), (0.5, "0.500"), (12.34, "12.3"), (1234.5, "1234"), (0.0, "0.00")],
)
def test_numbers_have_three_digits(value, text):
    from smallpebble.cli.bench import number

    assert number(value) == text


def interpreter(tmp_path, *lines):
    """An interpreter for --peer: a shell script."""
    path = tmp_path / "python-of-a-peer"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


PEER_BENCH = ["--only", "readme_mlp", "--rounds", "1", "--dtype", "float64"]


@pytest.mark.skipif(not POSIX, reason="needs a shell")
def test_a_peer_is_timed_and_its_losses_compared(tmp_path):
    python = interpreter(
        tmp_path,
        f'PYTHONPATH="{ROOT}" SMALLPEBBLE_PURE=1 exec "{sys.executable}" "$@"',
    )
    report = bench(tmp_path, *PEER_BENCH, "--peer", f"smallpebble={python}")
    for row in report["nets"]:
        peer = row["contenders"][-1]
        assert peer["name"].startswith("smallpebble ")
        assert peer["ms"] > 0
    assert report["nets"][0]["contenders"][-1]["loss_error_relative"] < 1e-9


@pytest.mark.skipif(not POSIX, reason="needs a shell")
def test_a_peer_that_cannot_start_is_refused(tmp_path, capsys):
    def start(*lines):
        python = interpreter(tmp_path, *lines)
        return refused(
            capsys, "bench", "--no-peers", "--only", "readme_mlp", "--peer", f"torch={python}"
        )

    assert "--peer torch: its process ended: exit code 3" in start("exit 3")
    assert "--peer torch: its process ended: no such thing" in start("echo no such thing >&2")
    missing = start(
        f"exec '{sys.executable}' -c "
        "\"import sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:];"
        ' import runpy; runpy.run_path(sys.argv[0], run_name=\'__main__\')" "$@"'
    )
    assert "--peer torch: ModuleNotFoundError" in missing


@pytest.mark.skipif(not POSIX, reason="needs a shell")
def test_a_peer_that_dies_is_a_failed_row(tmp_path, capsys):
    python = interpreter(tmp_path, "read line", 'echo "{\\"version\\": \\"1.0\\"}"', "read line")
    report = bench(tmp_path, *PEER_BENCH, "--peer", f"jax={python}")
    peer = report["nets"][0]["contenders"][-1]
    assert peer["name"] == "jax 1.0"
    assert "its process ended" in peer["failed"]
    assert report["nets"][0]["contenders"][0]["ms"] > 0
    assert "failed: its process ended" in capsys.readouterr().out


@pytest.mark.parametrize("library", ["smallpebble", "torch", "jax", "tensorflow"])
@pytest.mark.parametrize("net", ["readme_mlp", "readme_cnn"])
def test_nets_in_other_libraries(library, net):
    pytest.importorskip(library)
    build = getattr(models, net)(dtype="float64", rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    x, y = rng.random((6, *build.image_shape)), rng.integers(0, 10, 6)
    peer = peers.LIBRARIES[library](1)
    peer.net(net, [variable.array for variable in build.parameters.values()])
    adam = sp.Adam()
    given = peer.tensors(x, y)
    for _ in range(3):
        assert np.array_equal(peer.evaluate(given[0]), build.predict(x))
        assert peer.train(*given) == pytest.approx(build.train_step(adam, x, y), rel=1e-5)


# ---- info, self-test ----


def test_info(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert sp.__version__ in said
    assert sp.kernels.active() in said


@pytest.mark.parametrize("right, code", [(True, 0), (False, 1)])
def test_self_test_tells_by_its_exit_code(right, code, monkeypatch):
    from smallpebble import selftest

    calls = []

    def fake(tier=None, verbose=True):
        calls.append((tier, verbose))
        return right

    monkeypatch.setattr(selftest, "self_test", fake)
    assert cli.main(["self-test", "--tier", "reference"]) == code
    assert calls == [("reference", True)]


# ---- the nets ----


def test_readme_nets_are_those_of_the_readme():
    mlp, cnn = models.readme_mlp(), models.readme_cnn()
    assert [v.shape for v in mlp.parameters.values()] == [
        (784, 100), (100,), (100, 100), (100,), (100, 10), (10,),
    ]  # fmt: skip
    assert [v.shape for v in cnn.parameters.values()] == [
        (3, 3, 3, 32), (3, 3, 32, 128), (3, 3, 128, 128), (1152, 10), (10,),
    ]  # fmt: skip


def test_readme_flops():
    forward = 128 * 2 * (30 * 30 * 27 * 32 + 13 * 13 * 288 * 128 + 25 * 1152 * 128 + 11520)
    step = 3 * forward - 128 * 2 * 30 * 30 * 27 * 32
    assert models.readme_flops("readme_cnn", 128) == (step, forward)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 9, 2), (28, 28, 1), (32, 32, 3), (33, 12, 4)])
def test_a_cnn_fits_any_image(shape):
    net = models.cnn(shape)
    assert net.predict(np.zeros((2, *shape), np.float32)).shape == (2,)


# ---- examples ----


def test_walk_through_autodiff(tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "autodiff_walk.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, data, size", [("mnist_mlp", "mnist", 784), ("cifar_cnn", "cifar", 3072)]
)
def test_examples_with_data(name, data, size, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"X_{part}"] = rng.integers(0, 256, (60, size), np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 10, 60).astype(np.uint8)
    np.savez(tmp_path / f"{data}.npz", **arrays)
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", "--steps", "2"],
        cwd=tmp_path,
        env=environment(SMALLPEBBLE_DATA=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "validation accuracy" in result.stdout
