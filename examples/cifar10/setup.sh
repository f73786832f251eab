#!/usr/bin/env bash
# Configure a fork's backup, download the images, and make the first commit. A second run changes nothing.
#   ./setup.sh BUCKET [DATA_FOLDER]
# BUCKET       s3://name/folder, or a folder on a shared disk; credentials come from the environment or ~/.aws
# DATA_FOLDER  folder for images and weights (DVC's cache) outside the repository
set -euo pipefail
cd "$(dirname "$0")"
[ $# -ge 1 ] && [ $# -le 2 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
if [ -n "$(git status --porcelain)" ]; then
  git status --short >&2
  echo "These files have uncommitted changes. Commit or stash them, then run this again." >&2
  exit 1
fi
git var GIT_COMMITTER_IDENT >/dev/null 2>&1 || {
  echo 'git has no name and email for commits. Run: git config user.name "..."; git config user.email "..."' >&2
  exit 1
}

case $1 in *://*) bucket=$1 ;; *) bucket=$(realpath -m "$1") ;; esac
dvc remote add --quiet --default --force backup "$bucket"
case $1 in s3://*)
  [ -z "${AWS_ENDPOINT_URL:-}" ] || dvc remote modify --quiet backup endpointurl "$AWS_ENDPOINT_URL" ;;
esac
if [ $# -eq 2 ]; then
  dvc cache dir --quiet --local "$(realpath -m "$2")"
  dvc config --quiet --local cache.type reflink,symlink
fi

images=data/$(python -c 'import yaml; print(yaml.safe_load(open("params.yaml"))["prepare"]["source"])')
if [ -e "$images.dvc" ]; then
  dvc pull "$images.dvc"
else
  python images.py "${images#data/}" "$images"
  dvc add "$images"
fi
git add .dvc/config data
git diff --cached --quiet || git commit --quiet --message "Keep ${images#data/} in $bucket"
dvc push "$images.dvc" || {
  echo "The commit was made, but writing to $bucket failed. Set the credentials, then run: dvc push" >&2
  exit 1
}
echo "Ready. Next: dvc repro"
