#!/usr/bin/env bash
# The CI job: update the results of the default branch and push them in one commit.
set -euo pipefail
cd "$(dirname "$0")"
default=$(git ls-remote --symref origin HEAD | sed -n 's|^ref: refs/heads/\(.*\)\tHEAD|\1|p')
if [ "$(git branch --show-current)" != "$default" ]; then
  echo "This is branch $(git branch --show-current). Merge it into $default and start the job there." >&2
  exit 1
fi

git pull --quiet --ff-only
dvc pull --allow-missing # results that were never pushed are computed again
dvc repro
if [ -n "$(git status --porcelain metrics.json)" ]; then # unchanged: the branch's model was evaluated before, maybe with another MLflow
  [ -n "${MLFLOW_TRACKING_URI:-}" ] ||
    echo "MLFLOW_TRACKING_URI is not set: a new registry has no model, so the gate compares with the committed metrics.json only." >&2
  mlflow-gate promote ${ACCEPT_WORSE:+--force --why "$ACCEPT_WORSE"} # exits with 3 if the model is worse
fi
dvc push
git add dvc.lock metrics.json
if git diff --cached --quiet; then
  echo "Nothing has changed since the last run."
  exit
fi
python plots_page.py HEAD # a job artifact
metrics=$(dvc metrics diff --md HEAD)
accuracy=$(sed -n 's/.*| accuracy *| \([^ ]*\) *| \([^ ]*\) .*/: accuracy \2, was \1/p' <<<"$metrics")
git commit --quiet --message "Run the pipeline on $(git rev-parse --short HEAD)$accuracy [skip ci]" --message "$metrics"
git push --quiet ${GITLAB_CI:+--push-option=ci.skip} # fails if someone has pushed meanwhile: start the job again
echo "$metrics" | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}"
