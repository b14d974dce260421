"""The scripts of the benchmarks folder: they run, agree with themselves, and refuse nonsense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import smallpebble as sp

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ROOT = Path(sp.__file__).resolve().parents[1]
POSIX = os.name == "posix"

pytestmark = pytest.mark.skipif(not POSIX, reason="the scripts need POSIX's resource usage")


def start(script, *args, cwd):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"SMALLPEBBLE_PURE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-W", "error", BENCHMARKS / f"{script}.py", *map(str, args)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def run(script, *args, cwd):
    """The report of a script, and what it printed."""
    result = start(script, *args, "--rounds", 1, "--json", "report.json", cwd=cwd)
    assert result.returncode == 0, result.stderr
    with open(cwd / "report.json") as file:
        report = json.load(file)
    assert report["machine"]["smallpebble"] == sp.__version__
    assert "--json" in report["machine"]["command"]
    return report, result.stdout


def interpreter(tmp_path):
    """This interpreter as that of a peer, which has its packages from elsewhere."""
    path = tmp_path / "python-of-a-peer"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def load(name, monkeypatch):
    """A module of the folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return __import__(name)


def test_training_beside_itself(tmp_path):
    peer = f"smallpebble={interpreter(tmp_path)}"
    args = ["--only", "mlp float64 1", "--steps", 2, "--peer", peer]
    report, said = run("training", *args, cwd=tmp_path)
    setting, without = report["settings"]
    assert setting["name"] == "readme_mlp float64 1 thread"
    assert without["name"] == "readme_mlp float64 1 thread without zeros"
    assert without["targets"] is None
    assert setting["targets"] == [0.65, 0.51]
    assert len(setting["contenders"]) == 2
    for mine in setting["contenders"].values():
        assert mine["unit_ms"] >= max(mine["train_ms"], mine["evaluate_ms"]) > 0
        (sample,) = mine["samples"]
        assert len(sample["train"]) == len(sample["evaluate"]) == 3  # the first is not counted
        assert mine["loss_difference"] == 0
        assert mine["classes_alike"] == 1
        assert mine["details"]["threads"] == 1
        if sys.platform == "linux":
            assert mine["memory"]["peak"] >= mine["memory_before"]["peak"] > 1e6
    assert "readme_mlp float64 1 thread, batch 200" in said
    # An installation of SmallPebble is no rival.
    assert "ratio" not in setting
    assert "No ratios" in said


def test_training_on_real_images(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (50, 784), np.uint8), np.arange(50, dtype=np.uint8) % 10
    X[:, 300:] = 0
    np.savez(tmp_path / "mnist.npz", X_train=X, y_train=y, X_test=X, y_test=y)
    args = ["--only", "mlp float32 1", "--steps", 1, "--data", "."]
    report, _ = run("training", *args, cwd=tmp_path)
    with_zeros, without = (one["contenders"]["SmallPebble"] for one in report["settings"])
    assert with_zeros["train_ms"] > 0
    assert with_zeros["losses"] != without["losses"]  # of other images


def test_zoo(tmp_path):
    report, said = run("zoo", "--only", "4x4", cwd=tmp_path)
    rows = {(row["case"], row["part"]): row for row in report["rows"]}
    product = "matmul 4x4 4x4"
    assert {part for case, part in rows if case == product} == {"forward", "grad a", "grad b"}
    for row in rows.values():
        assert len(row["samples"]["SmallPebble"]) == 1
        assert row["seconds"]["SmallPebble"] > 0
    assert product in said


def test_every_case_of_the_zoo_has_a_name_of_its_own(monkeypatch):
    zoo = load("zoo", monkeypatch)
    labels = [label for _, label, _ in zoo.ZOO]
    assert len(set(labels)) == len(labels) > 60
    assert sum(family == "convolution" for family, _, _ in zoo.ZOO) >= 30


def small(case):
    """A case of the same kind with little to compute."""
    sizes = {
        "images": lambda shape: (1, *(min(size, 29) for size in shape[1:3]), min(shape[3], 3)),
        "n_kernels": lambda n: min(n, 4),
        "shapes": lambda shapes: [(2, 3), (3,)],
    }
    return {key: sizes.get(key, lambda value: value)(value) for key, value in case.items()}


def of_each_kind(zoo):
    """A small case for every way in which a case can be special."""
    kinds = {}
    for _, _, case in zoo.ZOO:
        if "a" not in case or np.prod(case["a"]) < 3e5:
            dimensions = len(case.get("a", ())), len(case.get("b", ()))
            key = case["kind"], case.get("padding"), case.get("strides"), dimensions
            kinds.setdefault(key, small(case))
    return list(kinds.values())


def test_what_is_timed_is_right(monkeypatch):
    """Values and gradients of every kind against the reference kernels."""
    zoo, operations = load("zoo", monkeypatch), load("operations", monkeypatch)
    library = type("Library", (), {"sp": sp})
    cases = of_each_kind(zoo)
    assert {case["kind"] for case in cases} == set(operations.CASES) - {"chain", "step"}
    for case in cases:
        found = operations.Requests("smallpebble", library).prepare(case, "float64")["parts"]
        with sp.kernels.use_kernels("reference"):
            expected = operations.Requests("smallpebble", library).prepare(case, "float64")["parts"]
        assert found.keys() == expected.keys()
        for part, answer in found.items():
            assert zoo.difference(answer, expected[part]) < 1e-12, (case, part)


def test_different_results_are_noticed(monkeypatch):
    zoo, operations = load("zoo", monkeypatch), load("operations", monkeypatch)
    rng = np.random.default_rng(0)
    array = rng.standard_normal((30, 40))
    other = array.copy()
    other[3, 4] += 0.1
    digest = operations.digest
    assert zoo.difference(digest(array), digest(array.copy())) == 0
    assert zoo.difference(digest(array), digest(other)) > zoo.TOLERANCE["float32"]
    assert zoo.difference(digest(array), digest(array[::-1])) > zoo.TOLERANCE["float32"]
    assert zoo.difference(digest(array), digest(array[1:])) == np.inf


@pytest.mark.parametrize("library", ["torch", "jax", "tensorflow", "mygrad"])
def test_peers_find_the_same(library, monkeypatch):
    """The zoo's kinds in other libraries, where this interpreter has them."""
    pytest.importorskip(library)
    from smallpebble.cli import peers

    zoo, operations = load("zoo", monkeypatch), load("operations", monkeypatch)
    loaded = {**peers.LIBRARIES, **operations.LIBRARIES}[library](1)
    chain = {"kind": "chain", "a": (4,), "operations": 8, "shared": True}
    cases = [chain] if library == "mygrad" else of_each_kind(zoo)
    ours = operations.Requests("smallpebble", type("Library", (), {"sp": sp}))
    theirs = operations.Requests(library, loaded)
    for case in cases:
        expected = ours.prepare(case, "float32")["parts"]
        found = theirs.prepare(case, "float32")["parts"]
        assert found.keys() == expected.keys()
        for part, answer in found.items():
            assert zoo.difference(answer, expected[part]) < zoo.TOLERANCE["float32"], (case, part)


def test_overhead(tmp_path):
    report, said = run("overhead", "--only", "chain", cwd=tmp_path)
    constants, parameters = report["chain"]
    assert not constants["shared"] and parameters["shared"]
    assert constants["microseconds_each"]["SmallPebble"] > 0
    assert "A chain of 1000 operations" in said


def test_growing_inputs(monkeypatch, capsys):
    overhead, contest = load("overhead", monkeypatch), load("contest", monkeypatch)
    monkeypatch.setattr(overhead, "BATCHES", (1, 2))
    monkeypatch.setattr(overhead, "SAMPLE", 1e-4)
    args = contest.parser("", ()).parse_args(["--rounds", "2"])
    args.threads, args.dtype = 1, "float32"
    rows = overhead._growing_batch(args)
    assert [row["case"] for row in rows] == ["batch 1", "batch 2"]
    assert all(len(row["samples"]) == 2 and row["per_image"] > 0 for row in rows)
    assert "us per image" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["training", "zoo", "overhead"])
@pytest.mark.parametrize(
    "args, complaint",
    [
        (["--only", "theano"], "--only: nothing has 'theano' in its name; there is: "),
        (["--rounds", "0"], "--rounds: must be 1 or more, got 0"),
        (["--json", "no/such/folder.json"], "there is no folder"),
        (["--peer", "torch"], "expected NAME=PYTHON"),
        (["--peer", "theano=python"], "--peer: 'theano' is unknown: choose from torch"),
        (["--peer", "torch=no-such-python"], "--peer: there is no interpreter 'no-such-python'"),
        (["--python", "no-such-python"], "--python: there is no interpreter 'no-such-python'"),
    ],
)
def test_wrong_arguments(script, args, complaint, monkeypatch, capsys, tmp_path):
    """In this process: each start would take a while."""
    from smallpebble.cli import guarded

    monkeypatch.chdir(tmp_path)
    module = load(script, monkeypatch)
    try:
        code = guarded(lambda: module.main(args))
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert complaint in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args, complaint",
    [
        (["--curves"], "--curves: needs --peer torch=PYTHON"),
        (["--data", "nowhere"], "--data: there is no "),
    ],
)
def test_wrong_arguments_of_training(args, complaint, monkeypatch, capsys, tmp_path):
    from smallpebble.cli import guarded

    monkeypatch.chdir(tmp_path)
    training = load("training", monkeypatch)
    assert guarded(lambda: training.main(args)) == 2
    assert complaint in capsys.readouterr().err


def test_a_script_ends_with_the_code_of_its_mistake(tmp_path):
    result = start("zoo", "--only", "theano", cwd=tmp_path)
    assert result.returncode == 2
    assert "nothing has 'theano'" in result.stderr
    assert "Traceback" not in result.stderr


# ---- the report ----


def measured(kind):
    """A report as the scripts write it: of little, and with numbers that are easy to find."""
    machine = {
        "date": "2026-01-02 03:04:05 +0000",
        "command": [f"{kind}.py", "--peer", "torch=/secret/bin/python", "--data", "/secret/data",
                    "--json", "/secret/figures.json"],
        "system": "Linux", "processor": "Abacus", "processors": 2, "load": 0.5,
        "python": "3.11", "numpy": "2.0", "smallpebble": "4.0.0",
    }  # fmt: skip
    ours, peer = "SmallPebble", "torch 2.0"
    contender = {
        "unit_ms": 3.0, "train_ms": 2.0, "evaluate_ms": 1.0, "train_faults": 12.0, "repeated": 1,
        "loss_difference": 1e-7, "classes_alike": 1.0, "memory": {"peak": 5e7},
        "memory_before": {"peak": None},
    }  # fmt: skip
    setting = {
        "net": "readme_cnn", "dtype": "float32", "threads": 2, "tier": None, "batch": 128,
        "name": "readme_cnn float32 2 threads", "targets": [0.55, 0.43], "ratio": 0.123,
        "contenders": {
            ours: contender, peer: {**contender, "unit_ms": 24.39}, "jax 1": {"failed": "gone"}
        },
    }  # fmt: skip
    off = {**setting, "tier": "avx2", "name": "readme_cnn float32 2 threads avx2"}
    apart = {
        "largest": 2e-3, "largest, median start": 4e-3, "median": 1e-4,
        "largest of the first 20": 1e-4, "starts within": 1,
    }  # fmt: skip
    row = {"part": "forward", "fastest": peer, "differences": {peer: 0.0}}
    content = {
        "training": {"settings": [setting, {"name": off["name"], "left_out": "not available"}]},
        "curves": {
            "curves": [{
                "net": "readme_mlp",
                "steps": 2, "starts": 1, "losses": {"torch float32": [[1.0, 0.5]]},
                "differences": {
                    "own": apart,
                    "smallpebble float32 from torch float64": {**apart, "largest": 3e-3},
                    "smallpebble float64 from torch float64": {
                        **apart, "largest": 1e-3, "largest, median start": 5e-3,
                    },
                },
            }],
        },
        "zoo": {
            "dtype": "float32", "threads": 2, "contenders": {ours: {}, peer: {}},
            "repeated": {ours: 3},
            "rows": [
                {**row, "family": "matmul", "case": "matmul 1x1 1x1", "ratio": 4.56,
                 "seconds": {ours: 4.56e-6, peer: 1e-6}},
                {**row, "family": "matmul", "case": "matmul of its own", "ratio": 1.5,
                 "seconds": {ours: 3e-6, peer: 2e-6}},
                {**row, "family": "pooling", "case": "maxpool2d", "ratio": 0.5,
                 "seconds": {ours: 1e-6, peer: 2e-6}},
            ],
        },
        "overhead": {
            "dtype": "float32", "chain": [{"shared": True, "seconds": {ours: 1, peer: 1},
                                           "ratio": 0.71,
                                           "microseconds_each": {ours: 5.5, peer: 7.7}}],
            "batch": [{"case": "batch 1", "seconds": 0.25, "per_image": 0.25, "over_median": 1.0}],
            "threads": [{"case": "CNN 1", "part": "forward", "one_ms": 3.8, "two_ms": 2.0,
                         "speedup": 1.9}],
        },
    }  # fmt: skip
    return {"schema": 1, "machine": machine, **content[kind]}


def written(report, kinds, folder, picture="picture.svg"):
    """What `report.py` makes of reports of some kinds."""
    for kind in kinds:
        (folder / f"{kind}.json").write_text(json.dumps(measured(kind)))
    paths = [str(folder / f"{kind}.json") for kind in kinds]
    assert report.main([*paths, "--out", str(folder / "B.md"), "--picture", picture]) == 0
    return (folder / "B.md").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:matplotlib")
def test_report_of_everything(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    report = load("report", monkeypatch)
    text = written(report, ["overhead", "zoo", "training", "curves"], tmp_path)
    expected = [
        "Abacus", "torch=/path/to/torch/bin/python --data FOLDER --json figures.json",
        "NumPy 2.0, SmallPebble 4.0.0, jax 1, torch 2.0",
        "| CNN | float32 | 2 | best | 3.00 | 24.4 | failed | **0.12** | 0.55 | 0.43 |",
        "avx2 was left out: not available",
        "12 page faults in a training step (goal: fewer than 1000); peak memory 1.00",
        "| cnn float32 2 threads | torch 2.0 | 24.4 | 2.00 | 1.00 | 12 | 50 | - | 1 | 1.0e-07 |",
        "| own | 2.0e-03 | 4.0e-03 | 1.0e-04 | 1.0e-04 | 1 | - | - |",
        "32 from torch float64 | 3.0e-03 | 4.0e-03 | 1.0e-04 | 1.0e-04 | 1 | reached | missed |",
        "64 from torch float64 | 1.0e-03 | 5.0e-03 | 1.0e-04 | 1.0e-04 | 1 | missed | reached |",
        "Above 1.3 of the fastest: 2 of 3; by the medians, without regard to rounds, 2.",
        f"| matmul 1x1 1x1, forward | {report._CALL} | 4.56 | 4.56 | 1.00 | torch |",
        f"| matmul of its own, forward | {report.NO_REASON} | 1.50 |",
        "| **convolution and pooling** | 0.50 | 1 | 0 | 0 | 0.8 |",
        "| parameters, whose gradients are wanted too | 5.50 | 7.70 |",
        "| batch 1 | 250 | 250000 | 1.00 |",
        "All together: 1.90 times as fast",
        "](picture.svg)",
    ]  # fmt: skip
    assert [one for one in expected if one not in text] == []
    assert "secret" not in text
    for line in text.split("\n"):  # every row of a table has as many cells as its head
        if not line.startswith("|"):
            cells = None
            continue
        cells = cells or line.count("|")
        assert line.count("|") == cells, line
    picture = (tmp_path / "picture.svg").read_bytes()
    assert b"</svg>" in picture and len(picture) < 150_000
    assert written(report, ["overhead", "zoo", "training", "curves"], tmp_path) == text
    assert (tmp_path / "picture.svg").read_bytes() == picture


@pytest.mark.parametrize("kind", ["curves", "overhead"])
def test_report_without_a_picture(kind, monkeypatch, tmp_path):
    text = written(load("report", monkeypatch), [kind], tmp_path)
    assert "![" not in text and not (tmp_path / "picture.svg").exists()
    assert text.count("\n## ") == {"curves": 2, "overhead": 4}[kind]


def test_report_links_those_of_other_machines(monkeypatch, tmp_path):
    report = load("report", monkeypatch)
    assert "On another processor" not in written(report, ["curves"], tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "abacus.md").write_text("# Benchmarks")
    assert "[abacus](benchmarks/abacus.md)" in written(report, ["curves"], tmp_path)


def test_reasons_are_for_shapes_of_the_zoo(monkeypatch):
    report, zoo = load("report", monkeypatch), load("zoo", monkeypatch)
    parts = ("forward", "grad images", "grad kernels", "grad a", "grad b", "both", "step")
    rows = [{"case": label, "part": part} for _, label, _ in zoo.ZOO for part in parts]
    given = {report.why(row) for row in rows}
    assert not set(report.REASONS.values()) - given


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_what_is_no_report(content, monkeypatch, tmp_path, capsys):
    from smallpebble.cli import guarded

    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    out = tmp_path / "B.md"
    arguments = [str(path), "--out", str(out), "--picture", "b.svg"]
    report = load("report", monkeypatch)
    assert guarded(lambda: report.main(arguments)) == 2
    assert str(path) in capsys.readouterr().err
    assert not out.exists()


class Scripted:
    """A worker whose answers are known beforehand."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def ask(self, request):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"interruptions": answer}


def contenders_of(contest, monkeypatch, **workers):
    monkeypatch.setattr(contest, "PAUSE", 0)
    made = contest.Contenders.__new__(contest.Contenders)
    made.workers, made.failed, made.repeated = workers, {}, contest.Counter()
    return made


@pytest.mark.parametrize(
    "interruptions, kept, again", [([5], 5, 0), ([6, 2], 2, 1), ([9, 7, 8], 7, 2)]
)
def test_interrupted_samples_are_taken_again(interruptions, kept, again, monkeypatch):
    contest = load("contest", monkeypatch)
    made = contenders_of(contest, monkeypatch, a=Scripted(*interruptions))
    assert made.sample("a", {})["interruptions"] == kept
    assert made.repeated["a"] == again
    assert not made.workers["a"].answers


def test_who_fails_is_left_out(monkeypatch, capsys):
    contest = load("contest", monkeypatch)
    workers = {"a": Scripted(0, contest.WorkerError("it is gone")), "b": Scripted(0, 0)}
    made = contenders_of(contest, monkeypatch, **workers)
    assert [name for name in made.turns(2) if made.sample(name, {})] == ["a", "b", "b"]
    assert made.failed == {"a": "it is gone"}
    assert "a failed: it is gone" in capsys.readouterr().err


def test_turns_move_on(monkeypatch):
    contest = load("contest", monkeypatch)
    made = contenders_of(contest, monkeypatch, a=Scripted(), b=Scripted(), c=Scripted())
    assert "".join(made.turns(3)) == "abcbcacab"


def test_close_operations_are_measured_again(monkeypatch):
    """All samples count, and those of other operations stay as they are."""
    zoo = load("zoo", monkeypatch)
    made = contenders_of(load("contest", monkeypatch), monkeypatch)
    made.ours = "SmallPebble"
    monkeypatch.setattr(made, "rivals", lambda: ["a", "b"])
    monkeypatch.setattr(zoo, "VISITS", 3)
    label = zoo.ZOO[0][1]

    def row(part, ours, a, b):
        samples = {"SmallPebble": ours, "a": a, "b": b}
        made_of = {"case": label, "part": part, "samples": samples, "differences": {"a": 0, "b": 0}}
        zoo._compare(made_of, made)
        return made_of

    rows = [row("forward", [1.5], [1.0], [2.0]), row("grad images", [1.0], [1.0], [1.0])]
    asked = []

    def time_case(contenders, case, dtype, rounds, only):
        asked.append((case, rounds, only))
        return [row("forward", [0.9], [1.0], [0.8])]

    monkeypatch.setattr(zoo, "time_case", time_case)
    zoo._visit_again(made, rows, "float32", 5)
    assert asked == [(zoo.ZOO[0][2], 5, {"forward"})] * 2
    assert rows[0]["samples"]["SmallPebble"] == [1.5, 0.9, 0.9] and rows[0]["visits"] == 3
    assert (rows[0]["fastest"], rows[0]["ratio"]) == ("b", 0.9 / 0.8)
    assert rows[1]["ratio"] == 1 and "visits" not in rows[1]


def test_ratios_are_of_the_same_round(monkeypatch):
    """Half as slow again in every round, on a machine that is slow now and then."""
    zoo = load("zoo", monkeypatch)
    made = contenders_of(load("contest", monkeypatch), monkeypatch)
    made.ours = "SmallPebble"
    monkeypatch.setattr(made, "rivals", lambda: ["a"])
    samples = {"SmallPebble": [1.5, 3.0, 4.0], "a": [1.0, 2.0, 1.0]}
    row = {"part": "forward", "samples": samples}
    zoo._compare(row, made)
    assert row["seconds"] == {"SmallPebble": 3.0, "a": 1.0}
    assert row["ratio"] == 1.5
