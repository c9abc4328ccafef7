"""Names, paths and values are data: nothing in them reaches a shell, a folder that is not theirs, or a page."""

import json
import os
import random
import re
import shlex
import subprocess
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sslzoo import RunError, UserError
from sslzoo.errors import RecipeError
from sslzoo.launch import profile as profiles
from sslzoo.launch import slurm, snapshot
from sslzoo.launch.submit import Asked, Element, plan, script, with_folder
from sslzoo.recipe.recipe import load
from sslzoo.report import html
from sslzoo.run.state import State

HOSTILE = [
    "$(touch made)",
    "`touch made`",
    "; touch made;",
    "a' ; touch made; '",
    'a" ; touch made; "',
    "a && touch made",
    "| touch made",
    "${HOME:-$(touch made)}",
    "a b  c",
    "-rf",
    "*",
    "#",
    "é",
    "a\\",
    "a\n#SBATCH --wrap='touch made'\ntouch made",
    "a\0b",
    "%x",
]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH on which SLURM and Python are scripts that only write down how they were called."""
    place = tmp_path / "tools"
    place.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "python", "sslzoo"):
        (place / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> "$CALLED"\nexit "${{EXIT:-0}}"\n')
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    return place


@pytest.fixture(scope="module")
def tiny():
    return load("tiny/ijepa")


def printed(tmp_path, tiny, keys, name="plain", out=None):
    """The batch script for a recipe's name, a run folder and keys of a profile, and the folder it would run in."""
    (tmp_path / "profile.yaml").write_text(json.dumps({"gpus_per_node": 1, **keys}))
    recipe, installed = tiny
    recipe = load("tiny/ijepa", [f"name={json.dumps(name)}"])[0]
    found = [Element(out or tmp_path / "runs" / recipe.name, recipe, installed)]
    return script(found, plan(found, Asked(str(tmp_path / "profile.yaml"), evaluate=False))), found[0].folder


def test_half_a_slurm_is_none(tmp_path, tiny, tools, monkeypatch):
    monkeypatch.setenv("PATH", str(tools))
    (tools / "srun").unlink()
    with pytest.raises(UserError, match="there is no SLURM on this machine: srun not found"):
        printed(tmp_path, tiny, {})


@pytest.mark.parametrize("bad", HOSTILE)
def test_hostile_words_reach_no_shell(tmp_path, tiny, tools, bad):
    """The script is run by bash; whatever stands in a name, a path or a value, it makes nothing and calls srun alone."""
    keys = [{key: bad} for key in ("partition", "account", "qos", "constraint", "memory")]
    keys += [{"environment": {"X": bad}}, {"sbatch": {"reservation": bad}}, {"sbatch": {bad: 1}}]
    keys += [{"environment": {bad: "1"}}, {"container": {"image": bad, "mounts": [bad], "python": bad}}]
    accepted = {}
    for one in keys:
        with suppress(RecipeError):
            (tmp_path / "one.yaml").write_text(json.dumps(one))
            profiles.load(str(tmp_path / "one.yaml"), tiny[1])
            accepted |= one
    for how in ({"name": bad}, {"out": tmp_path / "runs" / bad}):
        with suppress(RecipeError, UserError):
            text, folder = printed(tmp_path, tiny, accepted, **how)
            run_by_bash(text, folder, tmp_path / "here")
    assert accepted or not bad.isprintable()


def run_by_bash(text, folder, here):
    here.mkdir(exist_ok=True)
    env = os.environ | {"SLURM_JOB_ID": "1"}
    done = subprocess.run(["/bin/bash"], input=text, cwd=here, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), text
    assert not list(here.iterdir()), text
    called = Path(env["CALLED"]).read_text().split("\n")
    assert called[0] == "srun"
    assert any(str(folder.resolve() / "slurm") in word for word in called)
    for line in (line for line in text.splitlines() if line.startswith("#SBATCH")):
        assert len(shlex.split(line.removeprefix("#SBATCH"))) == 1, line


def test_values_of_the_environment_are_as_written_but_for_variables():
    def said(value):
        shell = f'export A={slurm._quoted(value)}; printf %s "$A"'
        return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env={"HOME": "/h"}).stdout

    assert said("$HOME/x") == "/h/x"
    assert said("${HOME}/`x`$(y)'\"\\") == "/h/`x`$(y)'\"\\"
    assert said("") == ""
    rng = random.Random(0)
    for _ in range(20):
        text = "".join(rng.choice("ab '\"\\$`(){};&|<>*?!#~=\t") for _ in range(12))
        if "$a" not in text and "$b" not in text:
            assert said(text) == text


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "a/b", "a\\b", "/etc/x", "", " ", "x" * 300, "a\0b", "a\nb", "-rf", "\u202ea"]
)
def test_a_name_that_is_no_folders_name_is_refused(name):
    with pytest.raises(RecipeError, match="a plain name is wanted, for a folder|a text holds no NUL"):
        load("tiny/ijepa", [f"name={json.dumps(name)}"])


def test_a_page_shows_names_as_text(tmp_path):
    bad = "<script>alert(1)</script>"
    rows = [[html.Cell("<b>", "<b>"), html.number(1.0)]]
    page = html.Page(bad, bad, [bad], [html.Table(bad, bad, [bad, "knn/<i>"], rows)], [], [(bad, bad)])
    text = html.write(tmp_path, page).read_text()
    assert bad not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;script&gt;" in text


def test_a_profile_tells_all_its_problems_at_once(tmp_path, tiny):
    (tmp_path / "bad.yaml").write_text(
        "partitoin: low\ngpus_per_node: some\ntime: soon\nprobing_time: never\nsbatch: {'a b': 1}\nenvironment: {1X: a, Y: \"a\\nb\"}\n"
    )
    with pytest.raises(RecipeError) as told:
        profiles.load(str(tmp_path / "bad.yaml"), tiny[1])
    for word in (
        "did you mean partition",
        "gpus_per_node",
        "'soon'; a time is wanted",
        "'never'",
        "sbatch.a b",
        "environment.1X",
        "Y",
    ):
        assert word in str(told.value)


def test_code_is_not_copied_among_files_of_others(tmp_path, tiny):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="was not made by sslzoo"):
        snapshot.of(tiny[1], [], tmp_path / "code").write()
    assert [path.name for path in (tmp_path / "code").iterdir()] == ["thesis.tex"]


def test_each_submission_keeps_the_code_it_was_made_with(tmp_path, tiny, tools, monkeypatch):
    """A second sweep into the same folder leaves the code of jobs that still wait alone."""
    from sslzoo.launch import submit as module

    recipe, installed = tiny
    file = tmp_path / "mine.py"
    asked = Asked("a100-80gb", gpus=1)
    monkeypatch.setattr(slurm, "submit", lambda *_words: ["7"])
    monkeypatch.setattr(slurm, "ask", lambda _jobs: {})
    used = []
    for number, text in enumerate(("a = 1\n", "a = 2\n", "a = 2\n")):
        file.write_text(text)
        run = tmp_path / "runs" / f"seed-{number}"
        one = Element(run, replace(recipe, plugins=(file,)), installed)
        monkeypatch.setattr(module, "top_of", lambda _found: tmp_path / "runs")
        module.submit([one], asked, [])
        used.append(Path(State(run).launch["code"]))
        assert (used[-1] / "sslzoo" / "train.py").is_file()
    assert [(one / "plugin_files" / "0" / "mine.py").read_text() for one in used] == ["a = 1\n", "a = 2\n", "a = 2\n"]
    assert used[1] == used[2] != used[0]
    (used[0] / "sslzoo" / "train.py").write_text("# by hand")
    file.write_text("a = 1\n")
    with pytest.raises(RunError, match="was changed since it was copied"):
        module.submit([replace(one, folder=tmp_path / "runs" / "seed-9")], asked, [])


MASK = """
from sslzoo import Mask, hookimpl

class All:
    def draw(self, rng, grid): return {"image": Mask([list(range(8))], [[[9]]])}

@hookimpl
def sslzoo_masks(): return {"all": All}
"""


def test_a_saved_run_is_not_submitted_with_another_plugin_unasked(tmp_path, tools, monkeypatch):
    from sslzoo.launch import submit as module

    monkeypatch.setattr(slurm, "submit", lambda *_words: ["7"])
    monkeypatch.setattr(slurm, "ask", lambda _jobs: {})
    monkeypatch.setattr(module, "check", lambda *_words: None)
    file, run = tmp_path / "mine.py", tmp_path / "run"

    def submit(text, **more):
        file.write_text(text)
        found = Element(run, *load("tiny/ijepa", ["masks.image={use: all}"], [file]))
        return module.submit([found], Asked("a100-80gb", gpus=1), [], **more)

    submit(MASK)
    submit(MASK + "# nothing is saved, nothing is lost\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000005.safetensors").write_bytes(b"")
    before = tree(run)
    with pytest.raises(RunError, match="begun with other plugins"):
        submit(MASK + "# another\n")
    assert tree(run) == before
    assert submit(MASK + "# another\n", upgrade=True) == ["7"]


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_submission_that_slurm_refuses_leaves_the_run_as_it_was(tmp_path, tiny, tools, monkeypatch):
    from sslzoo.launch import submit as module

    recipe, installed = tiny
    element = Element(tmp_path / "run", recipe, installed)
    asked = Asked("a100-80gb", gpus=1)
    monkeypatch.setattr(slurm, "submit", lambda *_words: ["7"])
    monkeypatch.setattr(slurm, "ask", lambda _jobs: {})
    assert module.submit([element], asked, []) == ["7"]
    before, tree_of_code = tree(tmp_path / "run"), tree(tmp_path / "run" / "code")
    assert tree_of_code

    def refused(*_words):
        raise UserError("SLURM refused the job: no")

    monkeypatch.setattr(slurm, "submit", refused)
    with pytest.raises(UserError, match="SLURM refused"):
        module.submit([element], replace(asked, nodes=2), [])
    assert tree(tmp_path / "run") == before
    for wrong in (asked.__class__("a100-80gb", gpus=7), asked.__class__("a100-80gb", gpus=1, time="soon")):
        with pytest.raises(UserError):
            module.submit([element], wrong, [])
        assert tree(tmp_path / "run") == before
    with pytest.raises(RunError, match="holds a run of another recipe"):
        module.submit([replace(element, recipe=load("tiny/ijepa", ["run.seed=9"])[0])], asked, [])
    assert tree(tmp_path / "run") == before
    monkeypatch.setattr(slurm, "submit", lambda *_words: ["8"])
    assert module.submit([element], asked, []) == ["8"]
    assert tree(tmp_path / "run" / "code") == tree_of_code


def test_what_comes_after_is_a_command_with_its_folder():
    assert with_folder("eval --untrained", Path("r")) == ("eval", "r", "--untrained")
    assert with_folder("sslzoo eval {} --probe knn", Path("r")) == ("eval", "r", "--probe", "knn")
    for bad in ("", "eval 'x", "   "):
        with pytest.raises(UserError, match="--then"):
            with_folder(bad, Path("r"))


THEN = ("evla", "eval --no-such", "eval 'x", "eval --step many", "eval --help", "eval --probe knnn")
THEN += ("eval --set evaluate.probes.knn.k=[0]", "eval --network studnt", "eval --set run.seed=7")


@pytest.mark.parametrize("then", THEN)
def test_what_comes_after_is_checked_before_anything_is_submitted(tmp_path, tools, then, monkeypatch):
    from click.testing import CliRunner

    from sslzoo.cli import cli

    monkeypatch.setattr(slurm, "submit", lambda *_words: pytest.fail("submitted"))
    words = ["submit", "tiny/ijepa", "--cluster", "a100-80gb", "--gpus", "1", "--out", str(tmp_path / "run")]
    left = CliRunner().invoke(cli, [*words, "--then", then])
    assert isinstance(left.exception, UserError)
    assert "--then" in str(left.exception)
    assert not (tmp_path / "run").exists()


# SLURM by scripts: the first TROUBLE calls of each fail with WORDS; squeue then answers NOW.
REQUEUE = """#!/bin/bash
name=${0##*/}
echo "$name $*" >> "$CALLED"
if [ "$(grep -c "^$name" "$CALLED")" -le "${TROUBLE:-0}" ]; then echo "$WORDS" >&2; exit 1; fi
[ "$name" != squeue ] || printf "$NOW"
"""


def test_a_script_asks_for_gpus_once_and_in_the_clusters_own_way(tmp_path, tiny, tools):
    """Asked for twice, with and without a type, SLURM refuses them, or gives another number."""

    def asked(**keys):
        text, _ = printed(tmp_path, tiny, {"gpus_per_node": 2, **keys})
        return re.findall(r"^#SBATCH --(gpu\S*|gres\S*)", text, re.MULTILINE), text

    assert asked()[0] == ["gpus-per-node=2"]
    assert asked(gpu_type="a100")[0] == ["gpus-per-node=a100:2"]
    assert asked(sbatch={"gres": "gpu:a100:2"})[0] == ["gres=gpu:a100:2"]
    assert asked(sbatch={"gpus-per-node": "a100:2", "gres": "fast:1"})[0] == ["gpus-per-node=a100:2", "gres=fast:1"]
    for key, value in {
        "gpus": False,
        "gpus-per-node": False,
        "tres-bind": "gres/gpu:closest",
        "gres-flags": "gpu",
    }.items():
        assert "gpus-per-node=2" in asked(sbatch={key: value})[0], "that asks for none"
    assert "--wckey=mine" in asked(sbatch={"wckey": "mine"})[1]
    text = asked()[1]
    assert "wckey" not in text, "submitit's is one that no cluster knows"
    assert " --export=ALL " in text, "where sbatch passes nothing on, srun would pass no PYTHONPATH on"
    (tmp_path / "profile.yaml").write_text(json.dumps({"gpus_per_node": 2, "sbatch": {"gres": "gpu:a100:2"}}))
    with pytest.raises(UserError, match="asks for GPUs by sbatch, gres: gpu:a100:2; give gpu_type"):
        plan([Element(tmp_path / "run", *tiny)], Asked(str(tmp_path / "profile.yaml"), gpus=1))


@pytest.mark.parametrize(
    ("gpus", "sbatch", "found"),
    [
        (8, {"gres": "gpu:a100:4"}, 4),
        (8, {"gres": "nvme:8,gpu:4"}, 4),
        (8, {"gpus_per_node": 4}, 4),
        (8, {"gpus-per-node": "a100:2,v100:2"}, 4),
        (0, {"gres": "gpu:2"}, 2),
        (8, {"gres": "gpu:8"}, None),
        (8, {"gres": "gpu"}, None),
        (8, {"gres": "nvme:1"}, None),
        (8, {"gpus": 16}, None),  # of all nodes
        (8, {"gpus-per-task": "a100:1"}, None),
    ],
    ids=str,
)
def test_a_node_has_as_many_processes_as_gpus_that_sbatch_is_asked_for(tmp_path, tiny, gpus, sbatch, found):
    (tmp_path / "profile.yaml").write_text(json.dumps({"gpus_per_node": gpus, "sbatch": sbatch}))
    wrong = f"asks for {found} GPUs of a node, .* there would be {max(1, gpus)} processes on it"
    with nullcontext() if found is None else pytest.raises(UserError, match=wrong):
        plan([Element(tmp_path / "run", *tiny)], Asked(str(tmp_path / "profile.yaml")))


def test_what_another_node_wrote_is_seen_before_it_is_decided(tmp_path, tiny, tools):
    """On NFS a name that was not there stays so for a minute, until this node makes one of its own beside it."""
    text, _ = printed(tmp_path, tiny, {})
    assert text.rindex('"$run/.seen"') < text.index('[ ! -e "$run/failure.txt" ] || exit "$code"')


@pytest.fixture
def job(tmp_path, tiny, tools, request):
    """Runs the batch script of a run in bash, its processes and SLURM's commands being scripts; returns what came of it."""
    text, run = printed(tmp_path, tiny, getattr(request, "param", {}))
    run.mkdir(parents=True)
    for name in ("squeue", "scontrol", "sleep"):
        (tools / name).write_text(REQUEUE)
        (tools / name).chmod(0o755)
    (tools / "sleep").write_text('#!/bin/bash\necho "sleep $*" >> "$CALLED"\n')

    def go(srun, **environment):
        (tools / "srun").write_text(f"#!/bin/bash\n{srun}\n")
        env = os.environ | {"SLURM_JOB_ID": "1", "NOW": "RUNNING"} | environment
        done = subprocess.run(["/bin/bash"], input=text, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.stderr == "", done.stdout
        go.text = text
        called = (tmp_path / "called").read_text().splitlines() if (tmp_path / "called").exists() else []
        (tmp_path / "called").unlink(missing_ok=True)
        failure = run / "failure.txt"
        return done.returncode, called, failure.read_text() if failure.exists() else "", done.stdout

    go.run = run
    return go


def begun(run, step, begun, code, saved=None):
    """A process in shell: begins, reaches a step, may save one, and ends."""
    lines = [f'echo \'{{"from": {begun}, "repeats": 0}}\' >> {run}/attempts.jsonl']
    lines += [f'printf \'{{\\n "state": "running",\\n "step": {step},\\n "steps": 9\\n}}\' > {run}/state.json']
    if saved is not None:
        lines += [f"mkdir -p {run}/checkpoints; /bin/sleep 0.02; touch {run}/checkpoints/step-{saved:09d}.safetensors"]
    return "\n".join([*lines, f"exit {code}"])


@pytest.mark.parametrize(
    ("case", "code", "did", "asked"),
    [
        ("done", 0, (5, 0, 5), 0),
        ("stopped", 143, (5, 0, 5), 1),
        ("killed", 137, (5, 0, 4), 1),
        ("killed after four that saved nothing", 137, (5, 0, 4), 1),
        ("its own error", 1, (5, 0, None), 0),
        ("cancelled", 143, (5, 0, 5), 0),
        ("no step, the first time", 137, (0, 0, None), 1),
        ("no step, the second time", 137, (0, 0, None), 0),
        ("no step, after four that saved nothing", 137, (5, 5, None), 1),
        ("nothing saved, after one", 137, (9, 5, None), 1),
        ("nothing saved, after four", 137, (9, 5, None), 0),
        ("dead before it began", 137, None, 1),
    ],
)
def test_the_batch_script_decides_whether_a_job_is_queued_again(job, case, code, did, asked):
    run = job.run
    srun = f"exit {code}" if did is None else begun(run, *did[:2], code, did[2])
    if case == "its own error":
        srun = f"echo 'ValueError: mine' > {run}/failure.txt\n{srun}"
    (run / "failure.txt").write_text("of an attempt before")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000005.safetensors").write_bytes(b"of an attempt before")
    if "four" in case or "one" in case.split():
        (run / "barren.txt").write_text("saved nothing (exit code 137)\n" * (4 if "four" in case else 1))
    if "second" in case:
        (run / "barren.txt").write_text("did no step (exit code 137)\n")
    hint = "rank 0 of 2 could not join the others" if case == "no step, the second time" else ""
    srun = f"echo '{hint}' > {run}/hint.txt\n{srun}" if hint else srun
    (run / "hint.txt").write_text("of an attempt before")
    left, called, told, _ = job(srun, NOW="CANCELLED" if case == "cancelled" else "RUNNING")
    assert left == code
    assert not (run / ".seen").exists()
    assert called.count("scontrol requeue 1") == asked
    expected = {
        "its own error": "ValueError: mine\n",
        "no step, the second time": f"2 attempts since the last save did no step; the last one: {hint} (exit code 137)",
        "nothing saved, after four": "5 attempts since the last save saved nothing; the last one: told no error",
    }.get(case, "")
    assert told.startswith(expected)
    assert bool(told) == bool(expected)


@pytest.mark.parametrize("job", [{"sbatch": {"requeue": False}}, {"sbatch": {"no-requeue": True}}], indirect=True)
def test_a_job_is_not_queued_again_where_the_profile_says_so(job):
    """Neither by its script nor by SLURM, which does by default."""
    code, called, told, _ = job(begun(job.run, 5, 0, 143, saved=5))
    assert (code, called, told) == (143, [], "")
    assert re.findall(r"^#SBATCH --.*requeue.*", job.text, re.MULTILINE) == ["#SBATCH --no-requeue"]


def test_the_last_element_of_an_array_is_asked_for_and_queued_again_alone(job):
    """It bears the number of the array, by which SLURM means every element."""
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    _, called, told, _ = job(begun(job.run, 5, 0, 137, saved=4), **array)
    assert [line for line in called if "sleep" not in line] == [
        "squeue --noheader --jobs 7_0 --format %T",
        "scontrol requeue 7_0",
    ]
    assert told == ""


DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


def test_a_controller_that_does_not_answer_is_asked_again(job):
    died = begun(job.run, 5, 0, 137, saved=4)
    _, called, told, _ = job(died, TROUBLE="3", WORDS=DOWN)
    assert [len([line for line in called if line.startswith(name)]) for name in ("squeue", "scontrol")] == [4, 4]
    assert told == ""
    _, called, told, _ = job(died, TROUBLE="99", WORDS=DOWN)
    assert told == f"SLURM did not answer for five minutes, so the job is not queued again: {DOWN}\n"
    assert sum(int(line.split()[1]) for line in called if line.startswith("sleep")) == 300
    for final in ("slurm_load_jobs error: Invalid job id specified", ""):
        _, called, told, said = job(died, TROUBLE="1" if final else "0", WORDS=final, NOW="")
        assert len([line for line in called if not line.startswith("sleep")]) == 1
        assert "is gone" in said
        assert told == ""
    _, called, told, _ = job(died, NOW="a warning of SLURM\nRUNNING\n")
    assert "scontrol requeue 1" in called
