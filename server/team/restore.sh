#!/bin/sh
# Restores a backup of `./backup.sh FOLDER`, on this machine or a new one: `./restore.sh FOLDER`. Newer runs are lost.
set -eu
[ $# = 1 ] && [ -s "$1/mlflow.sql" ] && [ -s "$1/artifacts.tar" ] ||
  { echo "No mlflow.sql and artifacts.tar in '${1-}'. Choose the folder of a backup: ./restore.sh FOLDER" >&2; exit 2; }
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")"
compose=${COMPOSE:-podman-compose}
$compose exec -T mlflow tar x -C /artifacts <"$folder/artifacts.tar"
$compose stop mlflow
# In one transaction: all or nothing.
$compose exec -T --user postgres postgres psql -q -1 -v ON_ERROR_STOP=1 -h /tmp mlflow <"$folder/mlflow.sql" >/dev/null ||
  { $compose start mlflow; exit 1; }
$compose start mlflow
echo "Restored runs and artifacts from $folder"
