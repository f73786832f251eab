#!/bin/sh
# Creates the database once, atomically. Sets the password at each start, so a new one is valid after a restart.
set -e
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
cd /data
if [ ! -d database ]; then
  rm -rf new
  initdb --pgdata new --encoding UTF8 --locale C.UTF-8 --auth-local peer --auth-host scram-sha-256 >/dev/null
  echo "host mlflow mlflow all scram-sha-256" >>new/pg_hba.conf
  printf 'CREATE ROLE mlflow LOGIN\nCREATE DATABASE mlflow OWNER mlflow\n' | postgres --single -D new postgres >/dev/null
  mv new database
fi
echo "ALTER ROLE mlflow PASSWORD '$PGPASSWORD'" | postgres --single -D database postgres >/dev/null
unset PGPASSWORD
exec postgres -D database -c listen_addresses='*' -c unix_socket_directories=/tmp \
  -c logging_collector=on -c log_destination=jsonlog -c log_directory=/var/log/team -c log_filename=postgres-%u.log \
  -c log_file_mode=0644 -c log_rotation_size=10MB -c log_truncate_on_rotation=on
