#!/bin/sh
# Saves runs and artifacts in FOLDER while everything runs: `./backup.sh FOLDER`. Set COMPOSE="docker compose" for Docker.
set -eu
[ $# = 1 ] || { echo "Choose one folder: ./backup.sh FOLDER" >&2; exit 2; }
umask 077
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")"
compose=${COMPOSE:-podman-compose}
# The database first, so that all artifacts that it refers to are already stored.
$compose exec -T --user postgres postgres pg_dump -h /tmp --clean --if-exists mlflow >"$folder/mlflow.sql.new"
$compose exec -T mlflow tar c -C /artifacts . >"$folder/artifacts.tar.new"
mv "$folder/mlflow.sql.new" "$folder/mlflow.sql"
mv "$folder/artifacts.tar.new" "$folder/artifacts.tar"
echo "Saved mlflow.sql and artifacts.tar in $folder"
