#!/usr/bin/env bash
# What the job does: bring the results of the default branch up to date and write them back, in one commit.
set -euo pipefail
cd "$(dirname "$0")"
default=$(git ls-remote --symref origin HEAD | sed -n 's|^ref: refs/heads/\(.*\)\tHEAD|\1|p')
if [ "$(git branch --show-current)" != "$default" ]; then
  echo "This is the branch $(git branch --show-current). Merge it into $default, and start the job there." >&2
  exit 1
fi

git pull --quiet --ff-only
dvc pull --allow-missing # results that were never pushed are made again
dvc repro
if [ -n "$(git status --porcelain metrics.json)" ]; then # else the model is the branch's, of a run that may be elsewhere
  [ -n "${MLFLOW_TRACKING_URI:-}" ] ||
    echo "MLFLOW_TRACKING_URI is not set: a new registry has no model, so the committed metrics.json alone is the measure." >&2
  mlflow-gate promote ${ACCEPT_WORSE:+--force --why "$ACCEPT_WORSE"} # stops here, with 3, when the model is worse
fi
dvc push
git add dvc.lock metrics.json
if git diff --cached --quiet; then
  echo "Nothing has changed since the last run."
  exit
fi
python plots_page.py HEAD # an artifact of the job
metrics=$(dvc metrics diff --md HEAD)
found=$(sed -n 's/.*| accuracy *| \([^ ]*\) *| \([^ ]*\) .*/: accuracy \2, was \1/p' <<<"$metrics")
git commit --quiet --message "Run the pipeline on $(git rev-parse --short HEAD)$found [skip ci]" --message "$metrics"
git push --quiet ${GITLAB_CI:+--push-option=ci.skip} # refused when somebody has pushed meanwhile: start the job again
echo "$metrics" | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}"
