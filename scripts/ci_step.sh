#!/usr/bin/env bash
# The steps of action.yml; they also run by hand, or on another CI:
#   key      the name under which the environment is cached -> GITHUB_OUTPUT
#   install  builds the environment in SECATEUR_ENV from requirements.lock
#   run      runs `secateur prune-and-export`, writes the summary, and ends with its exit code
# Inputs come as variables, never as text inside a script: a hostile name stays a name.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=${SECATEUR_ENV:?the folder of the environment}
output=${GITHUB_OUTPUT:-/dev/null}
summary=${GITHUB_STEP_SUMMARY:-/dev/null}

sha256() { python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

# The code of secateur itself is not in the lock, so its files count too.
code() { cd "$root" && find . -path ./.venv -prune -o -path ./.git -prune -o \( -name '*.py' -o -name '*.jinja' -o -name '*.css' \
  -o -name '*.json' -o -name '*.toml' -o -name '*.safetensors' \) -type f -print0 | LC_ALL=C sort -z | xargs -0 cat; }

key() {
  local code_file
  code_file=$(mktemp)
  code >"$code_file"
  printf 'key=secateur-%s-%s-py%s-%s-%s\n' "${RUNNER_OS:-$(uname -s)}" "${RUNNER_ARCH:-$(uname -m)}" "${SECATEUR_PYTHON:-}" \
    "$(sha256 "$root/requirements.lock" | cut -c1-16)" "$(sha256 "$code_file" | cut -c1-16)" >>"$output"
  rm -f "$code_file"
}

install() {
  python3 -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    -r "$root/requirements.lock"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "$root"
}

run() {
  local out=${SECATEUR_OUT:-secateur-run} status=0 started
  local -a options=(--out "$out")
  [ -z "${SECATEUR_RECIPE:-}" ] || options+=(--recipe "$SECATEUR_RECIPE")
  [ -z "${SECATEUR_MODEL:-}" ] || options+=(--model "$SECATEUR_MODEL")
  [ -z "${SECATEUR_WEIGHTS:-}" ] || options+=(--weights "$SECATEUR_WEIGHTS")
  [ -z "${SECATEUR_DATA:-}" ] || options+=(--data "$SECATEUR_DATA")
  [ -z "${SECATEUR_BASELINE:-}" ] || options+=(--baseline "$SECATEUR_BASELINE")
  if [ -n "${SECATEUR_ARGS:-}" ]; then
    local part parts
    parts=$(mktemp)
    if ! "$environment/bin/python" -c \
      'import shlex, sys; sys.stdout.write("".join(part + "\0" for part in shlex.split(sys.argv[1])))' "$SECATEUR_ARGS" >"$parts"; then
      echo "secateur: args are not quoted as a shell would read them: $SECATEUR_ARGS" >&2
      rm -f "$parts"
      finish "$out" 2 ""
    fi
    while IFS= read -r -d '' part; do options+=("$part"); done <"$parts"
    rm -f "$parts"
  fi
  started=$(mktemp)
  "$environment/bin/secateur" prune-and-export "${options[@]}" || status=$?
  finish "$out" "$status" "$started"
}

# Write outputs and summary; a report that was there before does not count as this run's.
finish() {
  local out=$1 status=$2 started=$3
  echo "exit-code=$status" >>"$output"
  if [ -n "$started" ] && [ -f "$out/report.md" ] && [ "$out/report.md" -nt "$started" ]; then
    cat "$out/report.md" >>"$summary"
    { echo "report=$out/report.json"; echo "model=$out/model.onnx"; } >>"$output"
  else
    printf '## secateur: no report\n\nIt ended with exit code %s; the log says why.\n' "$status" >>"$summary"
  fi
  [ -z "$started" ] || rm -f "$started"
  exit "$status"
}

case "${1:-}" in
  key | install | run) "$1" ;;
  *)
    echo "usage: ci_step.sh key|install|run" >&2
    exit 2
    ;;
esac
