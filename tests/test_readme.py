"""What the documents say is so: their code runs, and what they name exists."""

import ast
import builtins
import itertools
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import smallpebble as sp
from smallpebble import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md")
NOT_RUN = "<!-- not run: needs a download -->"
PATH = re.compile(r"(?<![\w/.*<])(?:[\w.]+/)*\w[\w.]*\.(?:py|pyx|pxi|inc|h|md|toml)\b")
DATA = Path(os.environ.get("SMALLPEBBLE_TEST_DATA") or ROOT.parent / "shared" / "data")

pytestmark = pytest.mark.skipif(
    not all((ROOT / name).is_file() for name in DOCUMENTS), reason="the documents are not here"
)
each_document = pytest.mark.parametrize("name", DOCUMENTS)


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(name, language):
    """(line of the fence, code, line before the fence) of every block in one language."""
    lines = text_of(name).split("\n")
    i = 0
    while i < len(lines):
        if lines[i].startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
            if lines[i] == f"```{language}":
                yield i + 1, "\n".join(lines[i + 1 : end]), lines[i - 1]
            i = end
        i += 1


def without_blocks(name):
    """The text of a document outside of its fenced blocks."""
    parts = re.split(r"^```.*$", text_of(name), flags=re.MULTILINE)
    assert len(parts) % 2, f"{name}: a fence is not closed"
    return "\n".join(parts[::2])


def quoted(name):
    """What stands in backticks outside of the blocks, and each line within shell blocks."""
    shell = [line for _, code, _ in fenced(name, "sh") for line in code.split("\n")]
    return re.findall(r"`([^`]+)`", without_blocks(name)) + shell


# ----------------------------------------------------------------------------------------- code


class Session:
    """One namespace for all blocks of a document, as a reader has it who types them in."""

    def __init__(self, name):
        self.name = name
        self.printed = {}  # number of a line -> what each call of print in it wrote
        self.namespace = {"__name__": "readme", "print": self._print}

    def _print(self, *values, **options):
        line = sys._getframe(1).f_lineno
        self.printed.setdefault(line, []).append(" ".join(map(str, values)))
        builtins.print(*values, **options)

    def compile(self, line, code):
        return compile("\n" * line + code, str(ROOT / self.name), "exec")

    def run(self, line, code):
        """Run a block, and compare what it prints with the comments behind its prints."""
        exec(self.compile(line, code), self.namespace)
        for number, one in enumerate(code.split("\n"), line + 1):
            if one.lstrip().startswith("print(") and "  # " in one:
                expected = one.rsplit("  # ", 1)[1].split()
                written = [text.split() for text in self.printed.get(number, [])]
                assert written, f"{self.name}:{number} was not reached"
                assert all(words == expected for words in written), (
                    f"{self.name}:{number} prints {written}"
                )


@pytest.fixture
def clean_state(tmp_path, monkeypatch):
    """A folder of its own; NumPy's global generator as it was."""
    monkeypatch.chdir(tmp_path)
    state = np.random.get_state()  # noqa: NPY002
    yield tmp_path
    np.random.set_state(state)  # noqa: NPY002


@each_document
def test_code_blocks_run_in_order(name, clean_state):
    session = Session(name)
    for line, code, before in fenced(name, "python"):
        if before == NOT_RUN:
            session.compile(line, code)
        else:
            session.run(line, code)
    assert not list(clean_state.iterdir()), "a block left files behind"


def test_most_blocks_of_the_readme_run():
    blocks = list(fenced("README.md", "python"))
    assert len(blocks) > 10
    assert sum(before == NOT_RUN for _, _, before in blocks) <= 2


def test_models_learn_from_real_images(clean_state, monkeypatch):
    """The blocks that need a download, where the files are at hand; fewer steps of the CNN."""
    missing = [name for name in ("mnist", "cifar") if not (DATA / f"{name}.npz").is_file()]
    if missing:
        pytest.skip(f"no {missing} in {DATA}; SMALLPEBBLE_TEST_DATA may name another folder")
    if sp.kernels.active() == "reference":
        pytest.skip("takes minutes with the reference kernels")
    monkeypatch.setenv("SMALLPEBBLE_DATA", str(DATA))
    np.random.seed(0)  # noqa: NPY002 (layers draw from it)
    session = Session("README.md")
    for line, code, before in fenced("README.md", "python"):
        if before == NOT_RUN:
            cnn = "train(cifar_cnn, X_train, y_train, steps="
            assert f"{cnn}300" in code
            code = code.replace(f"{cnn}300", f"{cnn}60")
        session.run(line, code)
    texts = itertools.chain.from_iterable(session.printed.values())
    found = {t.split(":")[0]: float(t.split()[1]) for t in texts if "test images" in t}
    assert found["MNIST"] > 0.9
    assert found["CIFAR-10"] > 0.2


@each_document
def test_marks_stand_before_blocks(name):
    marked = text_of(name).count(NOT_RUN)
    assert marked == sum(before == NOT_RUN for _, _, before in fenced(name, "python"))


# ---------------------------------------------------------------------------------------- names


def sources():
    """Every file that somebody wrote, as a path from the root."""
    for folder in ("smallpebble", "csrc", "tests", "benchmarks", "examples", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            inner = path.relative_to(ROOT)
            hidden = "__pycache__" in inner.parts or path.suffix in (".so", ".pyd")
            translated = folder == "csrc" and re.fullmatch(r"_.*\.c", path.name)
            if path.is_file() and not hidden and not translated:
                yield inner
    yield from (path.relative_to(ROOT) for path in ROOT.iterdir() if path.is_file())


@each_document
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(name)):
        if not re.match(r"[a-z]+:|#", target):
            assert (ROOT / target.split("#")[0]).exists(), f"{name}: {target}"


@each_document
def test_names_of_the_library_exist(name):
    for dotted in set(re.findall(r"\bsp((?:\.[A-Za-z_]\w*)+)", text_of(name))):
        found = sp
        for part in dotted.split(".")[1:]:
            assert hasattr(found, part), f"{name}: sp{dotted}"
            found = getattr(found, part)


def test_public_operations_are_in_the_readme():
    named = set(re.findall(r"\bsp\.([A-Za-z_]\w*)", text_of("README.md")))
    helpers = {"enable_broadcast", "np_strided_sliding_view", "padding2d", "patches_index"}
    missing = {*sp.ops.__all__, *sp.images.__all__} - named - helpers
    assert not missing


@each_document
def test_files_exist(name):
    """Every path in backticks: from the root, or the name alone of a file that is there."""
    known = set()
    for path in sources():  # also from the package, or by the last part of the path alone
        known |= {str(Path(*path.parts[i:])) for i in range(len(path.parts))}
    for token in quoted(name):
        for path in PATH.findall(token):
            assert path in known, f"{name}: `{token}`"


@each_document
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert {"demo", "test", "lint", "bench", "wheel", "clean"} <= targets
    for token in quoted(name):
        named = re.match(r"make ([a-z-]+)\b", token)
        assert named is None or named.group(1) in targets, f"{name}: `{token}`"


@each_document
def test_environment_variables_exist(name):
    code = "".join(
        (ROOT / path).read_text(encoding="utf-8")
        for path in sources()
        if path.suffix == ".py" and path.name != Path(__file__).name
    )
    for variable in set(re.findall(r"SMALLPEBBLE_[A-Z_]+", text_of(name))):
        assert variable in code, f"{name}: {variable}"


@each_document
def test_command_lines_are_understood(name):
    for token in quoted(name):
        words = shlex.split(token.split(" && ")[0], comments=True)
        if words[:3] == ["python", "-m", "smallpebble"] and "..." not in words:
            cli._parser().parse_args(words[3:])


# ---------------------------------------------------------------------------------------- house


def house():
    """The paths in ARCHITECTURE's house: folders end in /, names come before two spaces."""
    blocks = [code for _, code, _ in fenced("ARCHITECTURE.md", "text")]
    (block,) = [code for code in blocks if "smallpebble/\n" in code]
    folders = []
    for line in block.split("\n"):
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        del folders[depth:]
        for one in names:
            yield Path(*folders, one.rstrip("/")), one.endswith("/")
        if names[-1].endswith("/"):
            folders.append(names[-1].rstrip("/"))


def test_the_house_is_as_drawn():
    drawn = dict(house())
    assert len(drawn) > 30
    for path, is_folder in drawn.items():
        assert (ROOT / path).is_dir() if is_folder else (ROOT / path).is_file(), path
    inside = ("smallpebble", "csrc", "benchmarks", "examples")
    missing = [str(path) for path in sources() if path.parts[0] in inside and path not in drawn]
    assert not missing, f"files that ARCHITECTURE's house does not show: {missing}"


def test_functions_named_in_the_architecture_exist():
    """`name()` and `module.name` in backticks are defined somewhere in the sources."""
    defined = set()
    for path in sources():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    defined.add(node.name)
        elif path.suffix in (".pyx", ".pxi", ".h", ".inc"):
            code = (ROOT / path).read_text(encoding="utf-8")
            defined |= set(re.findall(r"\b(\w+)\(", code)) | set(re.findall(r"NAME\((\w+)\)", code))
    for token in re.findall(r"`([^`]+)`", without_blocks("ARCHITECTURE.md")):
        called = re.fullmatch(r"(?:\w+\.)*(\w+)\(\)", token)
        assert called is None or called.group(1) in defined, f"ARCHITECTURE.md: `{token}`"
