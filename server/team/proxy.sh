#!/bin/bash
# Serves the pages by HTTPS behind a log-in: on all interfaces if TEAM_HOST is set, else on loopback only.
# Starts as root to read or create the TLS key and certificate; nginx runs as `www-data`.
set -e
export NAME=${TEAM_HOST:-localhost} ADDRESS=127.0.0.1
[ -z "$TEAM_HOST" ] || ADDRESS=0.0.0.0
pem=/etc/proxy/$NAME.pem key=/etc/proxy/$NAME.key
if [ ! -s "$pem" ] || [ ! -s "$key" ]; then
  case $NAME in localhost) names=DNS:localhost,IP:127.0.0.1 ;; *[!0-9.]*) names=DNS:$NAME ;; *) names=IP:$NAME ;; esac
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 730 -subj "/CN=$NAME" \
    -addext "subjectAltName=$names" -addext keyUsage=critical,digitalSignature,keyCertSign \
    -keyout "$key" -out "$pem" 2>/dev/null
  chmod 644 "$pem"
fi
echo "Certificate of $NAME: $(openssl x509 -in "$pem" -noout -fingerprint -sha256)"
install -d -o www-data -m 700 /run/proxy
install -o www-data -m 400 "$key" /run/proxy/key
# shellcheck disable=SC2016 # envsubst replaces only these; the other variables are nginx's own
envsubst '$NAME $ADDRESS $HTTPS_PORT $MLFLOW_PORT $ADMINER_PORT $LOGS_PORT' </etc/team/nginx.conf >/run/proxy/nginx.conf
# nginx runs unprivileged, except for the capability to listen on ports below 1024, such as 443.
# rotatelogs keeps two log files of 5 MB and also prints each line to the terminal (-e).
exec setpriv --reuid www-data --regid www-data --init-groups --inh-caps -all,+net_bind_service \
  --ambient-caps -all,+net_bind_service --no-new-privs bash -c \
  'exec nginx -e stderr -c /run/proxy/nginx.conf > >(exec rotatelogs -e -n 2 /var/log/team/proxy.log 5M >&2)'
