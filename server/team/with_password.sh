#!/bin/sh
# with_password.sh USER COMMAND...: only root may read the secrets; the command runs as USER. libpq in it finds the
# password in the environment, not in an option that `ps` shows; boto3 finds S3's keys in a file in memory.
set -e
PGPASSWORD=$(cat /run/secrets/postgres_password)
export PGPASSWORD
user=$1
shift
[ ! -s /run/secrets/aws ] || install -o "$user" -m 400 /run/secrets/aws "$AWS_CONFIG_FILE"
exec setpriv --reuid "$user" --regid "$user" --init-groups --no-new-privs "$@"
