# What the jobs of this folder share. Sourced by them; bash.
set -euo pipefail
GPUS=${GPUS:-8}   # of each node
PORT=${PORT:-8000} # of the servers

# DRY_RUN=1 prints what would run, on the nodes named in NODES, and runs nothing.
run() {
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# Runs the training. SLURM's warning before the end (--signal=B:USR1@300 comes to this script, scancel --signal=TERM too)
# goes on to it; a training that has saved because of it ends with 75, and then the job is queued again.
again() {
    if [[ -n ${DRY_RUN:-} ]]; then
        run "$@"
        return
    fi
    local step='' asked='' code
    trap 'asked=yes; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null || true' USR1 TERM # srun hands it on to its tasks
    "$@" &
    step=$!
    [[ -z $asked ]] || kill -USR1 "$step"
    while code=0; wait "$step" || code=$?; kill -0 "$step" 2>/dev/null; do :; done # a trap ends one wait
    trap - USR1 TERM
    if [[ $code -eq 75 && -n ${SLURM_JOB_ID:-} ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}

nodes() {
    if [[ -n ${NODES:-} ]]; then
        tr ' ,' '\n\n' <<<"$NODES"
    else
        scontrol show hostnames "$SLURM_JOB_NODELIST"
    fi
}

model_of() { # the policy of a recipe, with its overrides
    python -c 'import sys; from prefix_rl.recipe import load_recipe; print(load_recipe(sys.argv[1], sys.argv[2:]).model.name_or_path)' "$@"
}

# Runs something on one node (or, with a count, on the first nodes of a list) as a step of this job.
on() { run srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" "${@:2}"; }

servers=()
serve() { # serve NODE MODEL [options of vllm serve]: starts a server in the background; it ends with the job
    if [[ -n ${DRY_RUN:-} ]]; then
        on "$1" vllm serve "$2" --host 0.0.0.0 --port "$PORT" "${@:3}"
        return
    fi
    on "$1" vllm serve "$2" --host 0.0.0.0 --port "$PORT" "${@:3}" >"serve-${SLURM_JOB_ID:-0}-$1.log" 2>&1 &
    servers+=($!)
}
stop_servers() { [[ ${#servers[@]} -eq 0 ]] || kill "${servers[@]}" 2>/dev/null || true; }
trap stop_servers EXIT

wait_for() { # until each server is up; a server that ends instead ends the job
    local url
    for url in "$@"; do
        echo "waiting for $url"
        [[ -n ${DRY_RUN:-} ]] && continue
        until curl --silent --fail --output /dev/null "$url/health"; do
            kill -0 "${servers[@]}" || { echo "a server has ended; see serve-*.log" >&2; exit 1; }
            sleep 5
        done
    done
}
