"""The command line, as a person or a script meets it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sslzoo import catalogue
from sslzoo.cli import COMMANDS, list_, main, new_
from sslzoo.plugins import FAMILIES
from sslzoo.recipe import told
from sslzoo.scaffold import KINDS

SHORT = ["--set", "run.steps=4", "--set", "run.batch=8", "--set", "run.workers=0", "--set", "run.monitor=8"]
SHORT += ["--set", "data.length=40", "--set", "run.save_every=2", "--set", "run.log_every=1"]
SHORT += ["--set", "evaluate.train.length=60", "--set", "evaluate.test.length=40"]
OF_A_RUN = ("eval", "resume", "status", "logs", "doctor", "cancel", "report", "compare")


@pytest.fixture
def sslzoo(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder: exit code, what it printed, what it complained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(list(map(str, words)))
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_examples(sslzoo, name):
    code, out, _ = sslzoo(name, "--help")
    assert code == 0
    assert f"  sslzoo {name}" in out.split("Examples:")[1]


def test_help_and_import_stay_light():
    """Neither imports torch; both are over within a second or so on a busy machine."""
    for code in ("import sslzoo", "from sslzoo.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"):
        check = f"{code}\nimport sys\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
        assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0


def test_completion_knows_the_commands():
    words = {"_SSLZOO_COMPLETE": "bash_complete", "COMP_WORDS": "sslzoo pl", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "sslzoo"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True)
    assert "plugins" in done.stdout


def test_what_torch_refuses_of_the_environment_is_told(sslzoo, monkeypatch):
    fails = compile("raise ValueError('Invalid log settings: no')", "torch/__init__.py", "exec")
    monkeypatch.setattr(list_.command, "callback", lambda **_: exec(fails, {"__name__": "torch"}))
    assert sslzoo("list")[::2] == (2, "PyTorch cannot be imported: ValueError: Invalid log settings: no\n")


def test_plugins_and_list_tell_who_offers_what(sslzoo):
    told = {one["name"]: one for one in json.loads(sslzoo("plugins", "--json")[1])}
    assert told["ijepa"]["offers"]["masks"] == ["multiblock", "multiblock-legacy"]
    assert told["datasets"]["from"] == "sslzoo"
    assert "multiblock-legacy" in sslzoo("plugins")[1]
    assert set(json.loads(sslzoo("list", "losses", "--json")[1])["losses"]) == set(catalogue().parts["losses"])
    assert "ijepa/vith14_in1k" in sslzoo("list", "recipes")[1]
    code, _, complaint = sslzoo("list", "maks")
    assert (code, "did you mean masks?" in complaint) == (2, True)


def test_show_tells_every_key_of_a_part_and_every_default_of_a_recipe(sslzoo, tmp_path):
    out = sslzoo("show", "masks", "multiblock")[1]
    said = "target_scale: share of the patches a target block covers, [low, high]."
    assert f"{said} [2 values, each a number, above 0, at most 1; default [0.15, 0.2]]" in " ".join(out.split())
    assert out.count("target_scale:") == 1  # a key is told once
    keys = json.loads(sslzoo("show", "masks", "multiblock", "--json")[1])["keys"]
    assert keys["targets"] == {
        "type": "a whole number, from 1 to 1024",
        "needed": False,
        "default": 4,
        "meaning": "target blocks of an image.",
        "free": False,
    }
    assert "[a list of numbers, above 0; default [0.001" in " ".join(sslzoo("show", "probes", "heads")[1].split())
    resolved = sslzoo("show", "tiny/ijepa", "--set", "run.steps=60")[1]
    assert yaml.safe_load(resolved)["run"]["steps"] == 60
    (tmp_path / "mine.yaml").write_text(resolved)
    assert yaml.safe_load(sslzoo("show", "mine.yaml")[1]) == yaml.safe_load(resolved)
    code, _, complaint = sslzoo("show", "run", "--set", "steps=60")
    assert (code, complaint.strip()) == (2, "--set changes recipes, and run is none")
    code, _, complaint = sslzoo("show", "masks", "multiblok")
    assert (code, "did you mean multiblock" in complaint) == (2, True)


@pytest.mark.parametrize("name", ["run", "optim", "evaluate"])
def test_show_tells_every_key_of_a_section_with_its_meaning(sslzoo, name):
    code, out, _ = sslzoo("show", name)
    keys = json.loads(sslzoo("show", name, "--json")[1])["keys"]
    assert code == 0
    assert set(keys) == set(told.SECTIONS[name].model_fields)
    assert all(key["meaning"] for key in keys.values())
    assert all(f"  {key}: " in out for key in keys)
    free = {key for key, about in keys.items() if about["free"]}
    assert {"run": {"workers", "micro"} <= free, "optim": not free, "evaluate": free == set(keys)}[name]
    assert "batch" not in free or name == "evaluate"


def test_check_prints_the_flow(sslzoo):
    code, out, _ = sslzoo("check", "ijepa/vith14_in1k")
    assert code == 0
    assert "[1 2 3 224 224]" in out
    assert "grid 16 x 16" in out
    assert "630.4 M parameters" in out
    assert out.endswith("ok\n")
    assert json.loads(sslzoo("check", "tiny/ijepa", "--json")[1])["flops_per_image"] > 0


def test_check_says_which_data_are_not_here(sslzoo, tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "here").mkdir()

    def told(**specs):
        sets = [word for place, spec in specs.items() for word in ("--set", f"{place.replace('_', '.')}={spec}")]
        code, out, complaint = sslzoo("check", "tiny/ijepa", *sets)
        assert (code, out.splitlines()[-1]) == (0, "ok"), complaint
        return [line for line in out.splitlines() if line.startswith("data not here: ")]

    assert told() == []
    assert told(data="{use: folder, root: here}", evaluate_test="{use: shards, files: 'here/{000..146}.tar'}") == []
    download = "{use: torchvision, name: CIFAR10, root: gone, download: true}"
    assert told(evaluate_train=download) == []
    (line,) = told(evaluate_train=download.replace("true", "false"))
    assert line.startswith("data not here: evaluate.train.root: no file or folder is called 'gone'")
    data, test = told(
        data="{use: parquet, files: gone/a*.parquet}", evaluate_test='{use: folder, root: "${NOWHERE}/val"}'
    )
    assert "data.files: no file or folder is called 'gone'" in data
    assert "evaluate.test.root" in test
    assert "the environment variable NOWHERE is not set" in test


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["chekc", "tiny/ijepa"], "did you mean check?"),
        (["check", "tiny/ijpea"], "did you mean tiny/ijepa?"),
        (["check", "tiny/ijepa", "--set", "masks.image.keep=2"], "keep"),
        (["check", "tiny/ijepa", "--set", "encoder.widht=32"], "did you mean width?"),
        (["check", "tiny/ijepa", "--plugin", "nowhere.py"], "no plugin file"),
        (["train", "tiny/ijepa", "--set", "run.batch=none"], "run.batch"),
        (["draw", "multiblok"], "did you mean multiblock?"),
        (["draw", "foo"], "mask samplers: block"),
        (["draw", "random", "--out", "/proc/x.png"], "takes no files"),
        (["compare", ".", "--out", "/proc/x"], "takes no files"),
        (["compare", "run", "other/../run"], "twice; a run is compared with others"),
        (["show", "masks"], "installed: block"),
        (["check", "tiny/ijepa", "--set", "encoder="], "found null; a mapping is wanted"),
        (["check", "tiny/ijepa", "--set", "losses.guess.weight=0"], "losses.guess.weight\n    nothing learns"),
        (["check", "tiny/ijepa", "--set", "optim.lr=0"], "nothing learns: the learning rate is 0"),
        (["check", "tiny/ijepa", "--set", "optim.groups={'*': {lr: 0}}"], "optim.groups.*.lr\n    nothing learns"),
        (["logs", "$'\x1b[31mred"], r"\x1b[31mred"),
        (["check", "\x1b[31m.yaml"], r"\x1b[31m.yaml"),
        (["list", "masks", "--\x1b[31m"], r"\x1b[31m"),
        (["draw", "random", "--grid", "14"], "rows x columns"),
        (["draw", "block", "--grid", "1x1"], "1 x 1"),
        (["eval", "."], "is not a run folder"),
        (["show", "multiblok"], "did you mean multiblock?"),
        (["show", "runs/ijepa-tin"], "did you mean runs/ijepa-tiny?"),
        (["check", "mine.yml"], "did you mean mine.yaml?"),
        (["compare", "mine.yml"], "did you mean mine.yaml?"),
        (["show", "linear"], "say which of predictors, probes"),
        *(([one, "runs/ijepa-tin"], "did you mean runs/ijepa-tiny?") for one in OF_A_RUN),
    ],
)
def test_a_mistake_ends_with_a_message_code_2_and_no_traceback(sslzoo, words, says):
    Path("runs/ijepa-tiny").mkdir(parents=True)
    Path("mine.yaml").touch()
    code, _, complaint = sslzoo(*words)
    assert code == 2
    assert says in complaint
    assert "Traceback" not in complaint
    assert "\x1b" not in complaint


def test_draw_makes_pictures_of_samplers_and_recipes(sslzoo, tmp_path):
    code, out, complaint = sslzoo("draw", "multiblock", "random", "--grid", "8x12", "--out", "a.png", "--images", 2)
    assert (code, "a.png" in out) == (0, True), complaint
    assert sslzoo("draw", "tiny/ijepa", "--out", "b.png", "--images", 2)[0] == 0
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("words", [("train",), ("submit", "--cluster", "a100-80gb")])
def test_a_run_is_not_begun_among_files_of_others(sslzoo, tmp_path, words):
    command, *more = words
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").write_bytes(b"")
    code, _, complaint = sslzoo(command, "tiny/ijepa", *SHORT, *more, "--out", "photos")
    assert (code, "photos is no run folder and not empty: it holds one.jpg" in complaint) == (2, True), complaint
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]


def test_a_recipe_that_a_person_wrote_is_not_replaced_by_a_run(sslzoo, tmp_path):
    (tmp_path / "mine").mkdir()
    text = "# by hand\n" + (Path(__file__).parents[2] / "recipes/tiny/ijepa.yaml").read_text()
    (tmp_path / "mine/recipe.yaml").write_text(text)
    code, _, complaint = sslzoo("train", "mine", *SHORT)
    assert (code, "was not written by sslzoo" in complaint) == (2, True), complaint
    assert (tmp_path / "mine/recipe.yaml").read_text() == text


def test_train_resume_and_eval_from_the_command_line(sslzoo, tmp_path):
    code, out, complaint = sslzoo("train", "tiny/ijepa", *SHORT, "--out", "run")
    assert code == 0, complaint
    assert "steps 0 to 4" in out
    assert re.search(r"step 4/4  loss \d.*images/s.*left 0:00:00", out)
    assert re.search(r"linear/count +\d+\.\d +\d+\.\d +\d+\.\d", out)
    assert "Health: " in (tmp_path / "run/report/index.html").read_text()
    assert [json.loads(x)["step"] for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    again = sslzoo("train", "run", "--out", "run", "--no-evaluate")  # the resolved recipe trains on
    assert "resumed from step-000000004" in again[1], again
    code, _, complaint = sslzoo("train", "tiny/ijepa", *SHORT, "--set", "run.seed=3", "--out", "run")
    assert code == 2
    assert "run.seed: 0 there, 3 asked for" in complaint
    code, out, _ = sslzoo("eval", "run", "--probe", "knn", "--untrained", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"step 4", "untrained", "chance"}
    code, _, complaint = sslzoo("eval", "run", "--probe", "knm")
    assert (code, "did you mean knn?" in complaint) == (2, True)


def test_index_is_a_command_of_a_plugin(sslzoo, tmp_path):
    from PIL import Image

    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / kind / "0.png")
    code, out, _ = sslzoo("index", "images")
    assert code == 0
    assert "2" in out


def test_a_kill_in_the_middle_loses_nothing(tmp_path):
    """Killed from outside while it trains, then started again with the same words."""
    command = [sys.executable, "-m", "sslzoo", "train", "tiny/ijepa", *SHORT, "--set", "run.steps=40", "--no-evaluate"]
    started = subprocess.Popen([*command, "--out", "run"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / "run" / "checkpoints"
    for _ in range(600):
        if list(checkpoints.glob("*.safetensors")):
            break
        time.sleep(0.1)
    started.kill()
    started.wait()
    done = subprocess.run([*command, "--out", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert "resumed from" in done.stdout
    subprocess.run([*command, "--out", "whole"], cwd=tmp_path, capture_output=True, check=True)
    last = "checkpoints/step-000000040.safetensors"
    one, other = (load_file(tmp_path / run / last) for run in ("run", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bench", "tiny/ijepa", "--out", "nowhere/x.json"), "there is no folder 'nowhere'"),
        (("bench", "tiny/ijepa", "--chart", "x.gif"), ".svg or .png"),
        (("bench", "tiny/ijepa", "--against-set", "run.batch=4"), "none is given"),
        (("draw", "multiblock", "--out", "nowhere/x.png"), "there is no folder 'nowhere'"),
        (("train", "tiny/ijepa", "--out", ""), "empty path"),
        (("compare", "tiny/masks", "--dry-run", "--out", "file/x"), "there is no folder 'file'"),
    ],
)
def test_what_cannot_be_written_is_told_before_any_work(sslzoo, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    code, _, told = sslzoo(*words)
    assert code == 2
    assert says in " ".join(told.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_help_of_list_and_new_names_every_family():
    assert all(f" {word}" in new_.command.help for word in KINDS)
    assert all(f" {family}" in list_.command.help for family in FAMILIES)


def test_show_tells_which_file_a_cluster_profile_is(sslzoo):
    code, _, err = sslzoo("show", "a100-80gb")
    assert code == 2
    (path,) = re.findall(r"cluster profile, .* the file (\S+)", err)
    assert "gpus_per_node: 8" in Path(path).read_text()


@pytest.mark.parametrize("words", [("--nodes", 2), ("--gpus", 1), ("--time", "1h")])
def test_a_drill_on_this_machine_takes_no_options_of_a_cluster(sslzoo, words):
    code, _, err = sslzoo("drill", "tiny/ijepa", *words)
    assert code == 2
    assert "are for --cluster" in err
    assert not Path("runs").exists()


def test_help_tells_defaults_and_what_plugins_add(sslzoo):
    said = {name: " ".join(sslzoo(name, "--help")[1].split()) for name in ("drill", "bench", "draw", "submit")}
    assert "Time limit of each job. [default: 30m]" in said["drill"]
    assert "[default: 5; x>=1]" in said["bench"]
    assert "[default: 14x14]" in said["draw"]
    assert "Nodes. [default: 1; x>=1]" in said["submit"]
    assert "sslzoo data pack" in " ".join(sslzoo("--help")[1].split())


def test_studies_and_clusters_are_listed_and_a_study_is_no_recipe(sslzoo):
    listed = json.loads(sslzoo("list", "--json")[1])
    assert listed["studies"]["tiny/masks"].startswith("Which masks?")
    assert listed["clusters"].keys() >= {"a100-80gb", "a100-80gb-shared"}
    assert "tiny/sampler_tokens" in sslzoo("list", "studies")[1]
    for command in ("show", "check", "train"):
        code, _, complaint = sslzoo(command, "tiny/masks")
        assert (code, "is a study" in complaint, "`sslzoo compare tiny/masks`" in complaint) == (2, True, True)


def test_a_dry_run_tells_the_jobs_that_follow(sslzoo, tmp_path, monkeypatch):
    for tool in ("sbatch", "srun"):  # never called
        (tmp_path / tool).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    words = ["submit", "tiny/ijepa", "--cluster", "a100-80gb", "--gpus", "1", "--dry-run", "--then", "eval --untrained"]
    code, out, _ = sslzoo(*words)
    assert code == 0
    assert "# probing: a job of 1 process on 1 GPU" in out
    assert "sslzoo eval runs/ijepa-tiny --untrained" in out
    assert "# probing" not in sslzoo(*words, "--no-evaluate")[1]
