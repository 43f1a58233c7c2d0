"""What happens on a machine with a TPU: the words of a command arrive unchanged, its output and end are in the log."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from .test_launchers import GKE, GOLDEN, ROOT, TPU_VM, make_arguments, start

HOSTILE = [
    "it's",
    'say "so"',
    "$(touch owned)",
    "`touch owned`",
    "; touch owned",
    "*",
    "a  b",
    "",
    "é",
    "&",
    "\\",
    "{}",
]
SHOW_WORDS = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)"]


@pytest.fixture
def home(tmp_path):
    """The home directory of a worker after the archive was unpacked."""
    shutil.copytree(ROOT / "launch", tmp_path / "frozen_jax/launch")
    return tmp_path


def on_worker(command, home, **environment):
    """Runs as sshd does: the login shell gets the text of the command."""
    environment = {**os.environ, "HOME": str(home), **environment}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=home, env=environment, timeout=60
    )


def find_command(fakes, arguments):
    environment, read = fakes
    done = start(arguments, environment)
    assert done.returncode == 0, done.stderr
    (option,) = [word for word in read()[-1] if word.startswith("--command=")]
    return option.removeprefix("--command=")


def await_end(log):
    deadline = time.monotonic() + 60
    while not (log.exists() and "ended with" in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)
    return log.read_text()


def test_the_words_of_a_command_reach_the_worker_and_its_end_the_log(fakes, home):
    arguments, _ = make_arguments("tpu_vm", "run", TPU_VM)
    command = find_command(fakes, [*arguments, "--", *SHOW_WORDS, *HOSTILE])
    done = on_worker(command, home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = await_end(home / "frozen_jax.log")
    assert str(HOSTILE) in log and log.endswith("ended with exit status 7\n")
    assert not list(home.rglob("owned")) and not (ROOT / "owned").exists()


def test_the_words_of_a_command_reach_the_container(fakes, home):
    arguments, _ = make_arguments("gke", "run", GKE)
    command = find_command(fakes, [*arguments, "--", "VARIABLE=1 2", *SHOW_WORDS, *HOSTILE])
    done = on_worker(f"({command}) & wait $!", home)
    assert done.returncode == 7 and done.stdout.strip() == str(HOSTILE)


def test_a_variable_may_stand_before_the_command(home):
    show = f"{sys.executable} -c 'import os; print(os.environ[\"VARIABLE\"])'"
    on_worker(f"bash frozen_jax/launch/worker.sh run VARIABLE=set {show}", home)
    assert "\nset\n" in await_end(home / "frozen_jax.log")


def test_a_kill_is_in_the_log(home):
    on_worker("bash frozen_jax/launch/worker.sh run bash -c 'kill -9 $$'", home)
    assert await_end(home / "frozen_jax.log").endswith("ended with exit status 137\n")


def test_a_second_run_is_added_to_the_log(home):
    for word in ("one", "two"):
        (home / "frozen_jax.log").touch()
        before = (home / "frozen_jax.log").read_text()
        on_worker(f"bash frozen_jax/launch/worker.sh run echo {word}", home)
        deadline = time.monotonic() + 60
        while "ended" not in (home / "frozen_jax.log").read_text().removeprefix(before):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    log = (home / "frozen_jax.log").read_text()
    assert log.index("\none\n") < log.index("\ntwo\n")


def test_logs_name_the_machine(home):
    (home / "frozen_jax.log").write_text("step 5\n")
    command = ["timeout", "1", "bash", "frozen_jax/launch/worker.sh", "logs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, env={**os.environ, "HOME": str(home)})
    assert done.stdout == f"{os.uname().nodename}: step 5\n"


@pytest.mark.parametrize("verb", ["", "start"])
def test_an_unknown_verb_is_refused(home, verb):
    done = on_worker(f"bash frozen_jax/launch/worker.sh {verb}", home)
    assert done.returncode == 1 and "setup, run" in done.stderr


@pytest.mark.parametrize(("name", "storage"), [("bucket", "gs://my-bucket"), ("share", "10.0.0.2:/share")])
def test_setup_installs_the_package_and_mounts_the_storage(home, name, storage):
    """All programs are fakes; what they are called with is in the golden file."""
    fakes = home / "fakes"
    fakes.mkdir()
    fake = '#!/usr/bin/env bash\necho "${0##*/} $*" >>"$RECORD"\n'
    programs = dict.fromkeys(("curl", "sudo", "sh", "gcsfuse", "lsb_release"), fake)
    programs["mountpoint"] = "#!/usr/bin/env bash\nexit 1\n"
    if name == "bucket":
        del programs["gcsfuse"]
        programs["sudo"] += 'case "$*" in *gcsfuse) cp "$0" "${0%/*}/gcsfuse" ;; esac\n'
    programs["lsb_release"] += "echo jammy\n"
    # Whoever stands at the end of a pipe reads it, so that who writes into it is not killed for coming late.
    programs["sudo"] += 'case "$1" in tee) cat >/dev/null ;; esac\n'
    programs["sh"] += "cat >/dev/null\n"
    # What the installer of uv does.
    programs["sh"] += 'mkdir -p "$HOME/.local/bin" && cp "${0%/*}/curl" "$HOME/.local/bin/uv"\n'
    for program, text in programs.items():
        (fakes / program).write_text(text)
        (fakes / program).chmod(0o755)
    command = f"bash frozen_jax/launch/worker.sh setup {storage}"
    done = on_worker(command, home, PATH=f"{fakes}:{os.environ['PATH']}", RECORD=str(home / "record"))
    assert done.returncode == 0, done.stderr
    # The two ends of a pipe may be noted in either order.
    record = (home / "record").read_text().replace(str(home), "~").replace(f"chown {os.getuid()}", "chown UID")
    golden = GOLDEN / f"worker_setup_{name}.txt"
    lines = "".join(sorted(record.splitlines(keepends=True)))
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(lines)
    assert lines == golden.read_text()
