"""What the surroundings do to a run: closed terminals, no locks, wrong environments, lost processes."""

import contextlib
import errno
import fcntl
import json
import os
import pkgutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sslzoo import RunError, files
from sslzoo.cli.options import allow_changed_data
from sslzoo.launch import slurm, work
from sslzoo.launch.drill import _counts, _gap, compare
from sslzoo.launch.grace import Grace
from sslzoo.launch.profile import Profile
from sslzoo.progress import Progress
from sslzoo.recipe.recipe import load
from sslzoo.report.display import Display
from sslzoo.run import processes
from sslzoo.run.folder import Folder
from sslzoo.run.processes import LostContact, World
from sslzoo.run.state import InUse, State, alive
from sslzoo.run.stop import Stop, Stopped

LINE = {"loss": 1.0, "images_per_second": 10.0, "data_wait": 0.0}


def test_a_hang_up_is_a_wish_to_stop_unless_nohup_ignores_it():
    before = {one: signal.getsignal(one) for one in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
        stop = Stop()
        stop.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked == "SIGHUP"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        Stop().listen()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for one, what in before.items():
            signal.signal(one, what)


TALKS = """
import sys
from pathlib import Path
from sslzoo.progress import Progress
from sslzoo.report.display import Display
with Display(Path(sys.argv[1])) as display:
    for step in range(3):
        display.show(Progress(step, 3), {"loss": 1.0, "images_per_second": 10.0, "data_wait": 0.0}, 1.0)
        display.say("x" * 100_000)
Path(sys.argv[2]).write_text("survived")
"""


@pytest.mark.parametrize("shell", ["{} > /dev/full", "{} >&-", "{} | true"])
def test_a_closed_or_full_standard_output_ends_no_run(tmp_path, shell):
    (tmp_path / "talks.py").write_text(TALKS)
    words = f"{sys.executable} talks.py log.txt end.txt; echo $? > code"
    subprocess.run(["bash", "-c", shell.format(f"({words})")], cwd=tmp_path, capture_output=True)
    assert (tmp_path / "end.txt").read_text() == "survived"
    assert (tmp_path / "code").read_text() == "0\n"
    assert "step 3/3" in (tmp_path / "log.txt").read_text()


def test_a_log_that_cannot_be_written_is_told_once(capsys):
    with Display(Path("/dev/full")) as display:
        for step in range(3):
            display.say("a line")
            display.show(Progress(step, 3), LINE, 1.0)
    assert capsys.readouterr().out.count("the log could not be written") == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_and_another_that_moves_is_seen(tmp_path, monkeypatch, code):
    def no_locks(*_words):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told = []
    with State(tmp_path).locked(warn=told.append):
        State(tmp_path).tell("running", step=1)
    assert len(told) == 1
    assert "has no locks" in told[0]
    now = State(tmp_path).now
    (tmp_path / "state.json").write_text(json.dumps(now | {"pid": os.getppid()}))
    with pytest.raises(InUse, match="seems in use"), State(tmp_path).locked(warn=told.append):
        pass


def test_a_run_elsewhere_that_writes_nothing_for_long_lives_while_it_is_held(tmp_path, monkeypatch):
    """Probing tells nothing: after ten minutes a run on another host was shown as lost."""
    monkeypatch.setattr("sslzoo.run.state.BEAT", 0.01)
    state, file = State(tmp_path), tmp_path / "state.json"

    def falls_silent():
        file.write_text(json.dumps({"state": "probing", "host": "elsewhere", "pid": 7, "time": 1000.0}))
        os.utime(file, (1000, 1000))

    falls_silent()
    assert not alive(state.now)
    with state.locked():
        until = time.monotonic() + 20
        while not alive(state.now) and time.monotonic() < until:
            time.sleep(0.01)
        assert alive(state.now)
        assert json.loads(file.read_text())["state"] == "probing"
    time.sleep(0.1)
    falls_silent()
    time.sleep(0.1)
    assert not alive(state.now)


def test_without_locks_a_job_waits_until_the_one_before_counts_as_gone(tmp_path, monkeypatch):
    """As when a job was killed and its run is resumed by another, within ten minutes."""

    def no_locks(*_words):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    clock, moves = [1000.0], []
    state = State(tmp_path)
    state.write_launch({"asked": {}, "top": "t", "code": "c", "logs": "l"})

    def sleep(seconds):
        clock[0] += seconds
        if moves:
            wrote(clock[0])

    def wrote(moment):
        now = {"state": "running", "host": "elsewhere", "pid": 7, "job": "7", "time": moment}
        (tmp_path / "state.json").write_text(json.dumps(now))
        os.utime(tmp_path / "state.json", (moment, moment))

    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    wrote(800.0)
    with state.locked(warn=lambda _: None):
        assert 1400 <= clock[0] < 1410
    wrote(clock[0])
    with pytest.raises(InUse, match="seems in use"), state.locked(patience=0.0, warn=lambda _: None):
        pass
    begun = clock[0]
    with pytest.raises(InUse, match="seems in use"), state.locked(most=300.0, warn=lambda _: None):
        pass
    assert clock[0] - begun < 310, "its other processes wait for this one, and not for ever"
    moves.append(True)
    with pytest.raises(InUse, match="seems in use"), state.locked(warn=lambda _: None):
        pass


def test_a_process_that_never_comes_is_lost_and_no_error_of_the_run(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in (meeting | {"SSLZOO_PATIENCE": 1}).items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(LostContact, match="rank 0 of 2 could not join the others") as left:
        work.work(*load("tiny/ijepa"), tmp_path / "run", Stop(), evaluate=False, promised=work.Promised(2, 0, 10))
    assert left.value.exit_code == 75
    assert State(tmp_path / "run").failure == ""
    assert "could not join the others" in (tmp_path / "run" / "hint.txt").read_text()


def test_a_gpu_that_fails_is_no_error_of_the_run(tmp_path, monkeypatch):
    """Its job is queued again, maybe on another node; a kernel's own mistake is told."""

    def fails(words, promised=None):
        def join(*_words, **_named):
            raise torch.AcceleratorError(f"CUDA error: {words}\nCompile with `TORCH_USE_CUDA_DSA`")

        monkeypatch.setattr(processes, "join", join)
        work.work(*load("tiny/ijepa"), tmp_path / "run", Stop(), evaluate=False, promised=promised)

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(LostContact, match=f"a GPU of {socket.gethostname()} failed or is in use"):
        fails("uncorrectable ECC error encountered", work.Promised(1, 1, 10))
    assert State(tmp_path / "run").failure == ""
    assert "ECC error" in (tmp_path / "run" / "hint.txt").read_text()
    with pytest.raises(LostContact, match="ECC error"):
        fails("uncorrectable ECC error encountered")
    assert "ECC error" in State(tmp_path / "run").failure, "nobody queues what is no job again"
    assert State(tmp_path / "run").now["state"] == "failed"
    (tmp_path / "run" / "failure.txt").unlink()
    (tmp_path / "run" / "state.json").unlink()
    with pytest.raises(torch.AcceleratorError):
        fails("device-side assert triggered", work.Promised(1, 1, 10))
    assert "device-side assert" in State(tmp_path / "run").failure


@pytest.mark.parametrize(("asked", "hinted"), [("SIGTERM", True), ("", False)])
def test_what_dies_of_the_signal_to_stop_is_no_error_of_a_job(tmp_path, monkeypatch, asked, hinted):
    """A compiler's worker, which the signal reached too: the job is queued again, within the bounds of barren starts."""
    stop = Stop()

    def join(*_words, **_named):
        stop.asked = asked
        raise RuntimeError("compile worker exited unexpectedly")

    monkeypatch.setattr(processes, "join", join)
    (tmp_path / "run").mkdir()
    with pytest.raises(RuntimeError):
        work.work(*load("tiny/ijepa"), tmp_path / "run", stop, evaluate=False, promised=work.Promised(1, 1, 10))
    assert (State(tmp_path / "run").failure == "") is hinted
    assert (tmp_path / "run" / "hint.txt").exists() is hinted


@pytest.mark.parametrize(("code", "told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.ENOSPC, True)])
def test_a_file_system_that_cannot_flush_folders_ends_no_run(tmp_path, monkeypatch, code, told):
    fsync = os.fsync

    def of_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, "no")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", of_files)
    with pytest.raises(OSError, match="no") if told else contextlib.nullcontext():
        files.flush(tmp_path)
    (tmp_path / "file").touch()
    files.flush(tmp_path / "file")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (dist.DistNetworkError("EADDRINUSE: address already in use"), LostContact),
        (dist.DistStoreError("1/2 clients joined"), LostContact),
        (TimeoutError("timed out"), LostContact),
        (RuntimeError("[gloo] Connection reset by peer"), LostContact),
        (ValueError("environment variable MASTER_ADDR expected, but not set"), RunError),
        (RunError("several processes were given one GPU"), RunError),
    ],
    ids=str,
)
def test_only_what_contradicts_itself_at_the_start_is_an_error_of_the_run(monkeypatch, error, kind):
    def raises(*_words):
        raise error

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_meet", raises)
    with pytest.raises(RunError) as told:
        processes.join("cpu")
    assert type(told.value) is kind


@pytest.mark.parametrize(
    "words",
    [
        {"WORLD_SIZE": "many"},
        {"WORLD_SIZE": "2", "RANK": "one", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "9" * 5000},
        {"WORLD_SIZE": "-1"},
        {"SLURM_STEP_ID": "x"},
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "\u0663"},
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1.5"},
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "SSLZOO_PATIENCE": "soon"},
    ],
)
def test_an_environment_without_numbers_is_told(monkeypatch, words):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")):
            monkeypatch.delenv(name)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError) as told:
        processes.join("cpu")
    assert "environment variable" in str(told.value) or "SLURM_" in str(told.value)
    assert len(str(told.value)) < 400


def test_a_job_that_asked_for_gpus_never_trains_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="asked for GPUs: no GPU is visible"):
        processes.join(gpus=True)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    with pytest.raises(RunError, match="asked for GPUs: no GPU is visible"):
        processes.join()
    assert processes.join("cpu").device.type == "cpu"
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    assert processes.join().device.type == "cpu"
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")  # the first GPU of its node
    with pytest.raises(RunError, match="asked for GPUs: no GPU is visible"):
        processes.join()


def test_one_visible_gpu_a_process_is_the_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert processes._device("auto", 3).index == 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes._device("auto", 3).index == 3
    with pytest.raises(RunError, match="local rank 4 has no GPU of its own"):
        processes._device("auto", 4)


def raised(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("raised nothing")


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, *_grads):
        raise ValueError("NCCL: Connection closed by peer")


def test_lost_contact_is_known_by_type_and_state_not_by_words(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 2)
    world = World(0, 2, store=store)

    def lost(error, explained=False):
        return processes.lost_contact(error, world, lambda: explained, wait=0.2)

    def computes():
        raise RuntimeError("NCCL: Connection closed by peer")

    assert not lost(raised(computes))
    assert not lost(RunError("NCCL"))
    assert not lost(ValueError("NCCL: Broken pipe"))
    assert not lost(raised(lambda: _Backward.apply(torch.ones(1, requires_grad=True)).sum().backward()))
    assert lost(dist.DistBackendError("whatever"))
    x = torch.ones(1, requires_grad=True)
    (x * 2).sum().backward()

    def twice():
        y = (x * x).sum()
        y.backward()
        y.backward()

    error = raised(twice)
    assert type(error) is RuntimeError
    assert lost(error)  # the other process does not answer
    store.set("failed/1", "here")
    assert not lost(error)  # it failed too, so it lives
    assert lost(error, explained=True)


def test_a_drill_allows_what_unbroken_runs_differ_by_and_nothing_else(tmp_path):
    """One bound stood for all machines: GPUs, where AdamW turns noise into steps, were told not to trust any resuming."""
    from sslzoo.run import checkpoint

    def wrote(name, noisy, learnt, loss=1.0):
        method = torch.nn.ParameterDict({"noisy": torch.tensor([noisy]), "learnt": torch.tensor([learnt])})
        folder = Folder(tmp_path / name)
        checkpoint.save(folder.checkpoints, 6, method, torch.optim.SGD(method.parameters()))
        folder.metrics.write({"step": 6, "loss": loss})
        for begun in (0, 2):
            row = {"from": begun, "repeats": 0, "time": 1.0, "host": "a"}
            files.append(tmp_path / name / "attempts.jsonl", [row])
        return tmp_path / name

    whole, other = wrote("whole", 1.0, 1.0), wrote("other", 0.8, 1.0001, loss=1.1)
    noise, bad, same = wrote("noise", 0.5, 1.0002), wrote("bad", 0.9, 1.1), wrote("same", 1.0, 1.0)
    assert compare(whole, same).exact
    assert compare(whole, noise, other).sound
    assert not compare(whole, noise).sound
    found = compare(whole, bad, other)
    assert (found.sound, found.where, found.bound) == (False, "method.learnt", pytest.approx(1e-3, rel=0.01))
    found = compare(whole, noise, same)
    assert not found.sound
    assert "unbroken runs do not differ here: do NOT trust resuming" in str(found)


def test_a_drill_scales_each_tensor_by_itself_and_counts_no_steps():
    assert _gap(torch.tensor([1e-4, 0.0]), torch.tensor([2e-4, 0.0])) == pytest.approx(0.5)
    assert _gap(torch.zeros(3), torch.zeros(3)) == 0
    assert _gap(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert _counts("optim.step.encoder.x")
    assert not _counts("optim.exp_avg.encoder.x")


def test_too_little_grace_is_told():
    assert not Grace(180, 30).warning(20.0)
    assert "KillWait leaves 30" in Grace(180, 30).warning(40.0)
    assert "signal_lead leaves 180" in Grace(180, None).warning(200.0)


def test_what_comes_after_training_is_told_below_its_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    with Display() as display:
        display.show(Progress(0, 1), LINE, 0.0)
        display.say("probing")
        assert "training" in (shown := capsys.readouterr().out)
        assert shown.endswith("probing\n")


def test_a_run_that_is_left_before_its_first_save_is_stopped_and_says_so(tmp_path, monkeypatch):
    def twice(*_words):
        raise Stopped("stopped by SIGINT")  # a second Ctrl-C does not wait for a save

    monkeypatch.setattr(work, "train", twice)
    with pytest.raises(Stopped) as left:
        work.work(*load("tiny/ijepa"), tmp_path / "run", Stop(), evaluate=False)
    assert left.value.exit_code == 143
    assert State(tmp_path / "run").now["state"] == "stopped"
    assert State(tmp_path / "run").failure == ""
    assert "nothing was saved" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("where", ["sslzoo.evaluate.bench.extract", "sslzoo.run.tensors.read"])
def test_a_run_that_is_stopped_while_it_is_probed_is_stopped_and_not_failed(where, tmp_path, monkeypatch):
    stop, short = Stop(), ("run.steps=1", "run.batch=4", "data.length=8", "run.monitor=0", "run.device=cpu")
    short += ("evaluate.train.length=12", "evaluate.test.length=6", "evaluate.probes={knn: {use: knn}}")
    real = pkgutil.resolve_name(where)

    def asked(*words, **more):
        if not stop.patient:
            stop._note(signal.SIGTERM, None)  # a signal arises wherever the process is just then
        return real(*words, **more)

    monkeypatch.setattr(where, asked)
    with pytest.raises(Stopped):
        work.work(*load("tiny/ijepa", short), tmp_path / "run", stop, evaluate=True)
    state = State(tmp_path / "run")
    assert (state.now["state"], state.now["step"], state.failure) == ("stopped", 1, "")


def test_a_job_inherits_no_process_group_from_the_shell_that_submits_it(tmp_path, monkeypatch):
    stale = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
    for name in (*stale, "SLURM_CONF", "IMAGENET", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_EXPORT"):
        monkeypatch.setenv(name, "1")
    seen = []

    class Executor:
        def submit(self, _function):
            seen.append(dict(os.environ))
            return SimpleNamespace(job_id="7")

    monkeypatch.setattr(slurm, "executor", lambda *_words: Executor())
    profile = Profile(partition="mine", sbatch={"qos": "mine"})
    assert slurm.submit(slurm.Plan("x", profile, 1, 1, "1h", "x"), tmp_path, [print]) == ["7"]
    assert not {*stale, "SBATCH_EXPORT"} & seen[0].keys()
    assert {"SLURM_CONF", "IMAGENET", "SBATCH_ACCOUNT"} <= seen[0].keys()
    assert not {"SBATCH_PARTITION", "SBATCH_QOS"} & seen[0].keys(), "they would count more than the profile's"
    assert set(stale) <= os.environ.keys()


@pytest.mark.parametrize(("rank", "forgotten"), [(0, True), (1, False)])
def test_changed_data_are_allowed_by_the_first_process_alone_under_srun_too(tmp_path, monkeypatch, rank, forgotten):
    words = {"STEP_ID": "0", "STEP_NUM_TASKS": "2", "PROCID": rank, "LOCALID": rank, "JOB_ID": "5"}
    for name, value in (words | {"STEP_NODELIST": "n1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # `launched` sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(Folder, "forget_data", lambda folder: calls.append(folder))
    allow_changed_data(tmp_path, True)
    assert bool(calls) == forgotten


def test_asked_twice_who_started_a_process_the_answer_is_the_same(monkeypatch):
    """Under srun the first answer sets what torchrun would, for torch; the second must not take it for torchrun's."""
    told = {"STEP_ID": "0", "STEP_NUM_TASKS": "4", "PROCID": "2", "LOCALID": "1", "JOB_ID": "7", "STEP_NODELIST": "n1"}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert processes.launched() == ("srun", 2, 4, 1)
    assert processes.launched()[1:] == (2, 4, 1)
