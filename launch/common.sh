# shellcheck shell=bash
# Shared by the launchers: flags, checks, quoting, and the one way in which commands are printed or run.
#
# A launcher collects the text of a script with `add` and `line`; `finish` prints it (--dry_run) or hands it to bash.
# Thus what is printed is what runs.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
launcher=launch/$(basename "$0")

# shellcheck disable=SC2034  # project, zone, storage: used by the launchers
verb='' name='' project='' zone='' storage='' dry_run=''
command=()
script='' indent='' on_failure=''
example='-- python -m frozen_jax.main --config=configs/quickstart.py --workdir=/mnt/runs/quickstart'

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints words so that a shell reads them back unchanged: --command='a b'.
quote() {
  local word flag separator='' mark="'" escaped="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      printf '%s%s' "$separator" "$word"
    else
      flag=''
      [[ ! $word =~ ^--[a-z_-]+= ]] || flag=${BASH_REMATCH[0]} word=${word#"${BASH_REMATCH[0]}"}
      printf "%s%s'%s'" "$separator" "$flag" "${word//$mark/$escaped}"
    fi
    separator=' '
  done
}

# Adds a line of shell to the script.
line() { script+="$indent$1$on_failure"$'\n'; }

# Adds a command, given as words.
add() { line "$(quote "$@")"; }

# parse 'FLAG=…' 'SWITCH…' ARGUMENTS…: assigns the variables of those names; both lists are separated by spaces.
parse() {
  local values=" project zone storage $1 " switches=" dry_run $2 " flag
  shift 2
  if [[ ${1:-} == --help ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$launcher"
    exit 0
  fi
  verb=${1:-} name=${2:-}
  [[ " create setup run logs resume delete " == *" $verb "* && -n $verb && $verb != *' '* ]] ||
    fail "unknown verb '$verb'; it is one of create, setup, run, logs, resume, delete (see $launcher --help)"
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "NAME is '$name'; it comes after the verb: up to 40 of a-z, 0-9 and '-', the first one a letter"
  shift 2
  while (($#)); do
    flag=${1%%=*} flag=${flag#--}
    case $1 in
      --) shift && command=("$@") && break ;;
      --*=) fail "--$flag is empty; give a value or leave the flag out" ;;
      --*=*)
        [[ $values == *" $flag "* ]] || fail "unknown flag --$flag=…; with a value there are:$values"
        printf -v "$flag" %s "${1#*=}"
        ;;
      --*)
        [[ $values != *" $flag "* ]] || fail "--$flag needs its value in the same word: --$flag=VALUE"
        [[ $switches == *" $flag "* ]] || fail "unknown flag --$flag; without a value there are:$switches"
        printf -v "$flag" yes
        ;;
      *) fail "unexpected argument '$1'; what the machines shall run comes after --" ;;
    esac
    shift
  done
  need project zone
  [[ $project =~ ^[a-z][-a-z0-9.:]+$ ]] || fail "--project=$project is not a project's ID; they look like my-project-123"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone=$zone is not a zone; they look like us-west4-a"
  [[ -z $storage || $storage =~ ^(gs://[a-z0-9][-a-z0-9_.]+|[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]+)$ ]] ||
    fail "--storage=$storage is neither gs://BUCKET nor HOST:/SHARE"
  [[ $verb != run && $verb != resume ]] || ((${#command[@]})) || fail "$verb needs a command, for example: $example"
  [[ $verb == run || $verb == resume ]] || ((!${#command[@]})) || fail "$verb takes no command; run and resume do"
  [[ "${command[*]-}" != *$'\n'* ]] || fail "the command has a line break, which not every platform passes on"
}

# need FLAG…: stops unless each was given.
need() {
  local flag
  for flag in "$@"; do
    [[ -n ${!flag} ]] || fail "--$flag=… is missing; $verb needs it (see $launcher --help)"
  done
}

# Adds what brings the committed state of this checkout to the workers and installs it there.
add_installation() {
  add mkdir -p dist
  add git archive --format=tar.gz --output=dist/frozen_jax.tar.gz HEAD
  copy_to_workers dist/frozen_jax.tar.gz frozen_jax.tar.gz
  on_workers "mkdir -p frozen_jax && tar -xzf frozen_jax.tar.gz -C frozen_jax && $(worker setup ${storage:+"$storage"})"
}

# Prints the command line of worker.sh as a worker runs it, in its home directory.
worker() { quote bash frozen_jax/launch/worker.sh "$@"; }

# finish PROGRAM…: prints the script, or runs it, for which the programs must be there.
finish() {
  local program
  if [[ -n $dry_run ]]; then
    printf '%s' "$script"
    return
  fi
  for program in "$@"; do
    type -P "$program" >/dev/null || fail "$program is not installed; docs/launch.md says what each platform needs"
  done
  bash -euxo pipefail -c "$script" || fail "$verb $name: the last command shown failed with exit status $?"
}
