"""Many of pyarrow's conversions load pandas, for nothing: 0.2 s of every process. No command of ours does so."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from support.typed import MODEL, QUIET, over

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = """
import importlib, json, sys
for verb, *arguments in json.loads(sys.argv[1]):
    importlib.import_module(f"jobs.{verb}").main(arguments)
    assert "pandas" not in sys.modules, verb
"""
TEXTS = {
    "a.txt": "the quick brown fox jumps over the lazy dog\n" * 200 + "a literal <unk> and <eos> too\n",
    "b.jsonl": '{"text": "jumps over the fox"}\n' * 50,
    "c.txt": "the lazy dog\n" * 20,
}


def test_no_command_loads_pandas(tmp_path: Path) -> None:
    assert find_spec("pandas") is not None, "nothing is shown where it is not there"
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    corpus = ["corpus.train=[a.txt,b.jsonl]", "corpus.valid=c.txt", "corpus.words=words", "corpus.unit_bytes=2048"]
    run = ["data=data", "run=run", "max_steps=4", *over(MODEL, "model.softmax.cutoffs=[5]"), *QUIET]
    commands = [
        ["prepare", "data=data", *corpus, *QUIET],
        ["prepare", "data=data", *corpus, *QUIET],  # which finds all of it there
        ["verify", "data=data"],
        ["inspect", "data=data"],
        ["synthesize", "to=made", "num_words=1000"],
        ["plan", *run],
        ["train", *run],
        ["evaluate", "run=run", "split=valid"],
        ["status", "run=run"],
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS, json.dumps(commands)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
