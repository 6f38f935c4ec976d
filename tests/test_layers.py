"""Imports point down and siblings never import each other; importing the library does nothing."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    ["jobs"],
    ["__init__"],
    ["interface", *pipeline.__all__],
    ["comparison"],
    ["planning", "ngram_run"],
    ["runner", "evaluation", "horizon"],
    ["training", "cluster", "reporting"],
    ["scoring", "submission"],
    ["run"],
    ["ngram"],
    ["corpus", "model"],
    ["config", "console", "errors", "masking", "provenance", "storage", "upgrades"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for top in ("pipeline", "jobs") for path in (ROOT / top).rglob("*.py"))
HOMES = {  # a heavy dependency: where it may be imported
    "ray": ("pipeline/cluster/", "pipeline/submission/ray_jobs.py"),
    "wandb": "pipeline/training/dashboards.py",
    "datasets": "pipeline/corpus/readers/dataset.py",
    "pyarrow": ("pipeline/corpus/", "pipeline/cluster/ray_train.py"),
    "lightning": ("pipeline/training/", "pipeline/cluster/", "pipeline/run/job.py"),
    "torch": tuple(f"pipeline/{part}/" for part in ("run", "model", "ngram", "scoring", "training", "cluster")),
    "hydra": "pipeline/config/composing.py",
    "fsspec": "pipeline/storage.py",
    "altair": "pipeline/reporting/charts.py",
    "vl_convert": "pipeline/reporting/charts.py",
}
DEFERRED = {
    "ray",
    "wandb",
    "datasets",
    "hydra",
    "altair",
    "vl_convert",
}  # imported where they are used, not with the module


def imports_of(path):
    """(dotted name, whether it stands at the module's level) of every import of a file."""
    tree = ast.parse(path.read_text())
    late = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late += [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    inner = {id(node) for outer in late for node in ast.walk(outer)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((name, id(node) not in inner) for name in names)


def layer_of(dotted):
    """The part of the library that a module belongs to; None for others and for `pipeline` itself."""
    top, _, rest = dotted.partition(".")
    part = top if top == "jobs" else rest.split(".")[0]
    return part if top in ("jobs", "pipeline") and part in LEVEL else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_heavy_ones_have_one_home(path):
    place = str(path.relative_to(ROOT))
    own = layer_of(place.removesuffix(".py").replace("/", "."))
    for name, at_module_level in imports_of(path):
        other = layer_of(name)
        if other and other != own:
            # of the lowest layer's modules, these know no other
            below = LEVEL[own] < LEVEL[other] or other in ("errors", "masking", "upgrades")
            assert below, f"{place}: {own} imports {name}"
        heavy = name.split(".")[0]
        if heavy in HOMES:
            assert place.startswith(HOMES[heavy]), f"{place} imports {name}"
            assert not (heavy in DEFERRED and at_module_level), f"{place} imports {name} with the module"


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("cluster", {"config", "console", "errors", "masking", "storage", "run"}),
        ("config", {"errors", "upgrades"}),
        ("storage", {"errors", "masking"}),
        ("console", {"masking"}),
        ("errors", {"masking"}),
        ("masking", set()),
        ("provenance", set()),
        ("upgrades", set()),
    ],
)
def test_what_the_lower_parts_know(file, allowed):
    place = ROOT / "pipeline" / file
    paths = sorted(place.rglob("*.py")) or [place.with_suffix(".py")]
    known = {layer_of(name) for path in paths for name, _ in imports_of(path)} - {None, file}
    assert known <= allowed


IMPORT_ALL = """
import json, logging, os, random, sys, warnings
def state():
    return [len(logging.root.handlers), logging.root.level, logging.raiseExceptions, dict(os.environ),
            repr(random.getstate()), os.getcwd(), [str(each) for each in warnings.filters]]
import numpy, torch, lightning, lightning.pytorch, pyarrow, fsspec, rich, pydantic  # what these do is theirs
def drawn():
    return [repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads(),
            str(torch.get_default_dtype()), torch.cuda.is_initialized()]
before, before_drawn = state(), drawn()
import importlib, pkgutil, pipeline, jobs
names = [each.name for top in (pipeline, jobs) for each in pkgutil.walk_packages(top.__path__, top.__name__ + ".")]
for name in names:
    importlib.import_module(name)
after, after_drawn = state(), drawn()
print(json.dumps({
    "changed": [i for i, (a, b) in enumerate(zip(before + before_drawn, after + after_drawn, strict=True)) if a != b],
    "handlers": [name for name in logging.root.manager.loggerDict
                 if name.split(".")[0] in ("pipeline", "jobs") and logging.getLogger(name).handlers],
    "levels": [name for name in logging.root.manager.loggerDict
               if name.split(".")[0] in ("pipeline", "jobs") and logging.getLogger(name).level],
    "loaded": sorted({"ray", "wandb", "datasets", "hydra", "altair", "vl_convert"} & set(sys.modules)),
    "names": names,
}))
"""


def test_ray_is_used_by_its_public_interface():
    """Also of what is imported within functions; an attribute of `ray` that is private counts too."""
    for path in FILES:
        for name, _ in imports_of(path):
            assert not (name.startswith("ray") and re.search(r"\._|_internal", name)), f"{path}: {name}"
        assert not re.search(r"_system_config|\bray(?:_api\(\))?\._", path.read_text()), path


def test_importing_everything_does_nothing():
    """Law 10."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # and nothing else was printed
    assert "pipeline.training.worker" in found.pop("names")
    assert found == {"changed": [], "handlers": [], "levels": [], "loaded": []}


def test_importing_the_package_alone_loads_nothing_heavy():
    code = "import sys; before = set(sys.modules); import pipeline; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert not loaded & {"torch", "lightning", "numpy", "pyarrow", "ray", "wandb", "datasets", "fsspec", "pydantic"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("jobs.train", "torch"),  # a mistake in the configuration is told before it is imported
        ("jobs.plan", "torch"),
        ("pipeline.runner", "torch"),  # a command that has workers elsewhere trains nothing itself
        ("jobs.prepare", "torch"),
        ("jobs.evaluate", "lightning"),
        ("jobs.horizon", "lightning"),
        ("pipeline.interface", "pyarrow"),
        ("pipeline.ngram_run", "torch"),
        ("pipeline.ngram.smoothing", "torch"),  # nor do the tasks that count
        ("jobs.status", "torch"),
        ("jobs.report", "torch"),
        ("jobs.inspect", "torch"),
        ("jobs.compare", "torch"),  # which waits while others train
    ],
)
def test_a_command_does_not_wait_for_what_it_does_not_need(module, absent):
    code = f"import sys, {module}; print({absent!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_module_leads_back_to_itself():
    """Deferred imports count too; those for types alone do not."""
    modules = {str(path.relative_to(ROOT)).removesuffix(".py").replace("/", "."): path for path in FILES}
    imported = {
        name: {other for dotted, _ in imports_of(path) for other in modules if f"{dotted}.".startswith(f"{other}.")}
        for name, path in modules.items()
        if not name.endswith("__init__")
    }
    done: set[str] = set()

    def walk(name, *above):
        assert name not in above, " → ".join((*above, name))
        if name not in done:
            for other in sorted(imported[name] - {name}):
                walk(other, *above, name)
            done.add(name)

    for name in imported:
        walk(name)


def test_tests_share_what_stands_in_support_alone():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert not [name for name, _ in imports_of(path) if name.split(".")[0].startswith("test_")], path
