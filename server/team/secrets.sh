#!/bin/sh
# Makes the passwords of the containers, readable for you alone; keeps those that exist.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
[ -s secrets/postgres_password ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >secrets/postgres_password
echo "PostgreSQL: user mlflow, database mlflow, password in $PWD/secrets/postgres_password"
