"""`plan` as a library: its numbers beside those of a run, and a refusal for what does not fit, with what does."""

import re
from math import ceil
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kinds import RECURRENT

from pipeline import storage
from pipeline.config import CheckpointConfig, PlanConfig, PlanSection
from pipeline.errors import CheckpointError, ConfigError, CorpusError
from pipeline.planning import LIMIT_SECONDS, _num_checkpoints, plan
from pipeline.run.checkpoint import checkpoint_path, committed_steps
from pipeline.run.plan import read_plan
from pipeline.run.retention import steps_to_keep
from pipeline.runner import train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit


@pytest.fixture
def planned(make_corpus, small_config):
    """A configuration to be planned, of a corpus that is there: (sections with the keys to change) → it."""
    data = make_corpus()

    def make(*overrides, **changes):
        base = small_config(*overrides, f"data={data}")
        given = {"plan": {"words_per_second": 1000.0, "price_per_hour": None, "device_memory_gb": None}}
        tree = base.model_dump() | given
        for name, change in changes.items():
            tree[name] = tree[name] | change if isinstance(change, dict) else change
        sections = {
            name: getattr(base, name).model_copy(update=change)
            for name, change in changes.items()
            if isinstance(change, dict) and name != "plan"
        }
        plain = {name: change for name, change in changes.items() if not isinstance(change, dict)}
        every = {name: getattr(base, name) for name in type(base).model_fields} | sections | plain
        return PlanConfig.model_construct(**every, plan=PlanSection(**tree["plan"]))

    return make


def test_the_numbers_of_a_run(planned, tmp_path):
    run = str(tmp_path / "run")
    config = planned(max_steps=100, max_epochs=None, plan={"price_per_hour": 2.0}, cluster={"num_workers": 3})
    found = plan(config.model_copy(update={"run": run}))
    assert (found.num_lanes, found.world_size, found.lanes_per_rank) == (3, 3, 1)
    num_targets = 1000 + 91  # words and line ends
    assert found.steps_per_epoch == ceil(ceil(num_targets / 3) / 7)
    assert found.epochs == 100 / found.steps_per_epoch
    epochs, windows = divmod(100, found.steps_per_epoch)
    assert found.total_words == epochs * num_targets + windows * 21
    assert found.hours == pytest.approx(found.total_words / 1000 / 3600)
    assert found.cost == pytest.approx(found.hours * 2.0 * 3)
    memory = found.memory_bytes
    assert memory.total == sum(size for name, size in memory if name != "total")
    assert memory.weights == 4 * found.parameters.total
    assert found.disk_bytes == found.num_checkpoints * found.checkpoint_bytes
    assert found.free_bytes > 0
    assert read_plan(run) == found


@pytest.mark.parametrize("kind", RECURRENT)
def test_each_recurrence_is_planned_with_what_its_lanes_carry(planned, tmp_path, kind):
    run = str(tmp_path / "run")
    config = planned(f"model.recurrence.kind={kind}", max_steps=3, max_epochs=None, run=run)
    found = plan(config)
    train(config)
    assert found.checkpoint_bytes == pytest.approx(storage.size_bytes(checkpoint_path(run, 3)), rel=0.003)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_checkpoints_have_the_size_and_number_that_are_planned(planned, tmp_path, name):
    run = str(tmp_path / "run")
    changes = {"optim": {"name": name}, "checkpoint": {"every_steps": 4, "keep_every_steps": 8, "every_minutes": None}}
    config = planned(max_steps=30, max_epochs=None, run=run, **changes)
    found = plan(config)
    train(config)
    steps = committed_steps(run)
    sizes = [storage.size_bytes(checkpoint_path(run, step)) for step in steps]
    assert found.checkpoint_bytes == pytest.approx(max(sizes), rel=0.03)
    assert len(steps) <= found.num_checkpoints == 3 + 2 + 1  # 8, 16, 24; 28, 30; one that is being written
    assert found.checkpoint_every_steps == 4


COUNTS = st.integers(1, 12)


@given(
    every=COUNTS,
    validated=COUNTS,
    last=COUNTS,
    best=st.integers(0, 3),
    spaced=COUNTS | st.none(),
    seed=st.integers(0, 99),
)
def test_no_run_has_more_checkpoints_than_are_planned(every, validated, last, best, spaced, seed):
    """Whichever of its validations are the best."""
    kept = {"keep_last": last, "keep_best": best, "keep_every_steps": spaced}
    section = CheckpointConfig(every_steps=every, every_minutes=None, validate_every_steps=validated, **kept)
    nats, there, most = Random(seed), set(), 0
    for step in range(1, 51):
        if step % every == 0 or step % validated == 0 or step == 50:
            there.add(step)
            most = max(most, len(there))
            found = {each: nats.random() for each in range(validated, step + 1, validated)}
            there = steps_to_keep(sorted(there), validations=found, **kept)
    assert (
        most <= _num_checkpoints(section, total_steps=50, steps_per_epoch=50) <= last + best + 1 + 50 // (spaced or 51)
    )


@pytest.mark.parametrize(("minutes", "number"), [(30, 2 + 1 + 1), (None, 20)])
def test_checkpoints_by_minutes_are_planned_too(planned, minutes, number):
    """By steps the run would have that of its end alone, or one for each of many steps, which are not counted out."""
    section = {"every_minutes": minutes, "every_steps": 10**8, "validate_every_steps": 10**7, "keep_best": 1}
    if minutes is None:
        section |= {"every_steps": 1, "keep_every_steps": 1_176_471}
    assert plan(planned(max_steps=2 * 10**7, max_epochs=None, checkpoint=section)).num_checkpoints == number


def test_words_a_second_are_measured(planned, monkeypatch):
    monkeypatch.setattr("pipeline.planning.TRIAL_SECONDS", 0.3)
    workers = {"num_workers": 3, "cpus_per_worker": 1}
    one, three = (
        plan(planned(plan={"words_per_second": None}, stream={"num_lanes": lanes}, cluster=cluster))
        for lanes, cluster in ((1, {"cpus_per_worker": 1}), (3, workers))
    )
    assert one.measured.startswith("words/s by steps of 1 of 1 lanes on this cpu")
    assert one.words_per_second > 0
    assert three.words_per_second > 0
    assert one.hours == pytest.approx(one.total_words / one.words_per_second / 3600)


def test_what_cannot_be_measured_here_is_not_known(planned, monkeypatch):
    found = plan(planned(accelerator="cuda", plan={"words_per_second": None, "price_per_hour": 1.0}))
    assert (found.words_per_second, found.hours, found.cost) == (None, None, None)
    assert "no GPU is here: give plan.words_per_second=" in found.measured
    monkeypatch.setattr("pipeline.planning.TRIED_PARAMETERS", 10)
    assert "too large to be tried on this CPU" in plan(planned(plan={"words_per_second": None})).measured


@pytest.mark.parametrize(("step_seconds", "known"), [(0.01, True), (0.9, True), (1.1, False), (4.0, False)])
def test_a_plan_takes_no_longer_than_it_may(planned, monkeypatch, step_seconds, known):
    """By a clock that the model's making moves by 2 s, and each step by so many for a lane."""
    clock = SimpleNamespace(now=100.0)

    def stepper(*_, **__):
        clock.now += 2.0

        def step(lanes):
            clock.now += step_seconds * lanes

        return step

    monkeypatch.setattr("pipeline.training.trial._stepper", stepper)
    monkeypatch.setattr("pipeline.planning.time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("pipeline.training.trial.time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = plan(planned(plan={"words_per_second": None}, stream={"num_lanes": 64}))
    assert clock.now - 100.0 <= LIMIT_SECONDS
    assert (found.words_per_second is not None) == known
    assert known or "has not the time or the memory to try some steps: give plan.words_per_second=" in found.measured


def nearest(error, key):
    return re.search(rf"{re.escape(key)}=(\S+?)(?=[ ,;:]|$)", str(error.value))[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_memory_that_a_device_lacks_is_refused_with_what_it_has_room_for(planned, num_workers):
    def of(num_lanes, workers=num_workers, gb=None):
        changes = {"stream": {"num_lanes": num_lanes}, "cluster": {"num_workers": workers}}
        return plan(planned(plan={"device_memory_gb": gb}, **changes))

    gb = of(20).memory_bytes.total / 1e9  # as much as 20 lanes take
    assert of(20, gb=gb).device_memory_bytes == round(gb * 1e9)
    with pytest.raises(ConfigError, match=r"a device has .* and the run needs .* activations") as error:
        of(64, gb=gb)
    lanes, workers = (int(nearest(error, key)) for key in ("stream.num_lanes", "cluster.num_workers"))
    assert lanes == 20
    assert workers == {1: 4, 2: 8}[num_workers]  # 16 and 8 lanes on each
    of(lanes, gb=gb)
    of(64, workers, gb=gb)
    with pytest.raises(ConfigError):
        of(lanes + num_workers, gb=gb)


def test_the_gpu_that_is_here_has_its_own_memory(planned, monkeypatch):
    monkeypatch.setattr("pipeline.training.footprint.device_memory_bytes", lambda device: 100_000)
    assert plan(planned()).device_memory_bytes == 100_000
    with pytest.raises(ConfigError, match=r"a device has 100 kB and"):
        plan(planned(stream={"num_lanes": 30}))
    assert plan(planned(stream={"num_lanes": 30}, plan={"device_memory_gb": 1.0})).device_memory_bytes == 10**9


def test_a_model_that_no_lane_fits_is_refused(planned):
    with pytest.raises(ConfigError, match=r"one lane takes .* already: use devices of") as error:
        plan(planned(plan={"device_memory_gb": 1e-6}))
    gb = float(nearest(error, "plan.device_memory_gb"))
    assert plan(planned(stream={"num_lanes": 1}, plan={"device_memory_gb": gb})).device_memory_bytes == gb * 1e9


@pytest.mark.parametrize(
    ("room", "section", "mend"),
    [
        (9.5, {"keep_every_steps": 1}, {"keep_every_steps": 20}),  # 100 steps: 5 of them, 2 last, 1 best, 1 on its way
        (3.5, {"keep_every_steps": 1}, {"keep_every_steps": None, "keep_last": 1, "keep_best": 1}),
        (2.5, {"keep_last": 4}, {"keep_last": 1, "keep_best": 0}),
        (4.5, {"keep_last": 9, "keep_best": 2}, {"keep_last": 1, "keep_best": 2}),
    ],
)
def test_checkpoints_that_the_disk_lacks_are_refused_with_what_it_has_room_for(
    planned, tmp_path, monkeypatch, room, section, mend
):
    def of(**changes):
        section = {"every_steps": 1, "validate_every_steps": 10, **changes}
        return plan(planned(max_steps=100, max_epochs=None, run=str(tmp_path / "run"), checkpoint=section))

    free = int(of().checkpoint_bytes * room)
    monkeypatch.setattr("pipeline.planning._free_bytes", lambda run: free)
    storage.remove(str(tmp_path / "run" / "plan.json"))
    with pytest.raises(ConfigError, match=r"has room for .*, and \d+ checkpoints of .* take") as error:
        of(**section)
    assert {key: nearest(error, f"checkpoint.{key}").replace("null", "None") for key in mend} == {
        key: str(value) for key, value in mend.items()
    }
    assert read_plan(str(tmp_path / "run")) is None  # none of what is refused
    assert of(**section | mend).disk_bytes <= free


def test_a_disk_without_room_for_two_checkpoints_is_refused(planned, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.planning._free_bytes", lambda run: 100)
    with pytest.raises(ConfigError, match="use another run=FOLDER with room for"):
        plan(planned(run=str(tmp_path / "run")))


def test_a_run_may_be_planned_again(planned, tmp_path):
    """Its own checkpoints take no room from it."""
    config = planned(max_steps=4, max_epochs=None, run=str(tmp_path / "run"))
    first = plan(config)
    train(config)
    again = plan(config)
    assert again.model_copy(update={"free_bytes": None}) == first.model_copy(update={"free_bytes": None})
    assert again.free_bytes > 0


def test_a_run_in_an_object_store(planned, s3_bucket):
    found = plan(planned(run=f"{s3_bucket}/planned/run"))
    assert found.free_bytes is None
    assert read_plan(f"{s3_bucket}/planned/run") == found


def test_what_train_refuses_is_refused(planned, tmp_path):
    with pytest.raises(ConfigError, match=r"cluster\.num_workers=2 does not divide .*; use cluster.num_workers=1 or 3"):
        plan(planned(cluster={"num_workers": 2}))
    config = planned()
    with pytest.raises(ConfigError, match="is the same folder as data="):
        plan(config.model_copy(update={"run": config.data}))
    with pytest.raises(ConfigError, match="data=null is not given"):
        plan(config.model_copy(update={"data": None}))
    with pytest.raises(CorpusError, match="manifest"):
        plan(config.model_copy(update={"data": str(tmp_path / "none")}))


def test_a_folder_that_holds_another_run_keeps_its_plan(planned, tmp_path):
    config = planned(max_steps=4, max_epochs=None, run=str(tmp_path / "run"))
    found = plan(config)
    train(config)
    other = config.model_copy(update={"stream": config.stream.model_copy(update={"bptt": 9})})
    with pytest.raises(ConfigError, match=r"step-4\.ckpt is of another run: stream.bptt was 7 and is 9; set it back"):
        plan(other)
    assert read_plan(config.run) == found
    Path(checkpoint_path(config.run, 4)).write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="step-4"):
        plan(config)


def test_weights_that_a_run_cannot_begin_with_are_refused(planned, tmp_path):
    run, origin = str(tmp_path / "run"), planned(max_steps=4, max_epochs=None, run=str(tmp_path / "origin"))
    with pytest.raises(CheckpointError, match=r"init_from=.*/origin has no weights to begin with"):
        plan(origin.model_copy(update={"run": run, "init_from": origin.run}))
    train(origin)
    with pytest.raises(ConfigError, match=r"init_from=.* is the run itself; use another run="):
        plan(origin.model_copy(update={"init_from": origin.run}))
    wide = origin.model.model_copy(update={"embedding_size": 9})
    with pytest.raises(ConfigError, match=r"has weights of other shapes: model\.embedding_size was .* and is 9"):
        plan(origin.model_copy(update={"run": None, "model": wide, "init_from": origin.run}))
    assert not storage.is_folder(run)
    tuned = origin.model_copy(update={"run": run, "init_from": origin.run})
    assert plan(tuned) == read_plan(run)
