#!/bin/bash
# Creates the database password (readable only by you) and empty files for users and S3 keys, and chooses MLflow's port.
# Existing files are kept.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets/proxy
touch secrets/aws secrets/proxy/users
chmod 755 secrets/proxy # for the proxy's user; on this machine the mode of `secrets` keeps others out
chmod 644 secrets/proxy/users
[ -s secrets/postgres_password ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >secrets/postgres_password
touch .env
if ! grep -q ^MLFLOW_PORT= .env; then
  port=5000
  ! (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null || port=5500
  echo MLFLOW_PORT=$port >>.env
fi
echo "MLflow: http://127.0.0.1:$(sed -n s/^MLFLOW_PORT=//p .env | tail -1)"
echo "PostgreSQL: user mlflow, database mlflow, password in $PWD/secrets/postgres_password"
