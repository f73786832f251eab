#!/bin/sh
# with_password.sh USER COMMAND...: read the secrets as root, then run the command as USER. libpq gets the password from
# the environment, not from an option that `ps` shows; boto3 gets the S3 keys from a file in memory.
set -e
PGPASSWORD=$(cat /run/secrets/postgres_password)
export PGPASSWORD
user=$1
shift
[ ! -s /run/secrets/aws ] || install -o "$user" -m 400 /run/secrets/aws "$AWS_CONFIG_FILE"
exec setpriv --reuid "$user" --regid "$user" --init-groups --no-new-privs "$@"
