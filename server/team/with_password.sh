#!/bin/sh
# with_password.sh USER COMMAND...: only root may read the secret's file; the command runs as USER, and libpq in it finds
# the password in the environment, not in an option that `ps` shows.
set -e
PGPASSWORD=$(cat /run/secrets/postgres_password)
export PGPASSWORD
user=$1
shift
exec setpriv --reuid "$user" --regid "$user" --init-groups --no-new-privs "$@"
