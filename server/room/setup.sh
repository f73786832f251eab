#!/usr/bin/env bash
# Make this machine a room: everybody logs in with a browser and gets JupyterLab with the workshop. As root, on Debian or
# Ubuntu. Typed again, it takes what changed of this repository, and keeps accounts, work and passwords.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
  cat <<'TEXT'
setup.sh --people FILE | --open   one name a line, a password is made for each; or: who comes chooses a name
  --password PASSWORD             of the open room, at least 8 characters; by default one is made
  --port 443                      of the page
  --host NAME                     how browsers call this machine; for the certificate that is made, and the printed address
  --certificate FILE --key FILE   your own, in PEM
  --memory 4G                     of a person, at most
  --repository ADDRESS            where updates come from (nbgitpuller); by default this clone's origin
TEXT
}
fail() { printf 'Not set up: %s\n  next: %s\n' "$1" "$2" >&2; exit 1; }

people="" is_open="" password="" port=443 host=$(hostname -f 2>/dev/null || hostname) certificate="" key="" memory=4G
repository=$(git -C "$here" remote get-url origin 2>/dev/null || true)
while [ $# -gt 0 ]; do
  case $1 in
    --open) is_open=yes ;;
    -h | --help) usage; exit ;;
    --people | --password | --port | --host | --certificate | --key | --memory | --repository)
      [ $# -gt 1 ] || fail "$1 needs a value" "server/room/setup.sh --help"
      printf -v "${1#--}" %s "$2"; shift ;;
    *) usage >&2; fail "$1 is no option" "choose one of those above" ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || fail "accounts and networks need root" "sudo $0 ..."
[ -n "$people" ] || [ -n "$is_open" ] || { usage >&2; fail "nobody may come in" "--people FILE, or --open"; }
[ -z "$people" ] || [ -r "$people" ] || fail "$people cannot be read" "--people FILE, with one name a line"
[ -z "$people" ] || ! wrong=$(grep -vxE '[a-z][a-z0-9_-]{0,30}|' "$people") ||
  fail "these are no names of accounts: $(echo $wrong)" "small letters, digits, - and _, a letter first, 31 at most"
[ ${#password} -eq 0 ] || [ ${#password} -ge 8 ] || fail "the password has ${#password} characters" "8 or more"
[[ $memory =~ ^[0-9]+[GM]$ ]] || fail "--memory $memory is no amount" "such as 4G or 900M"
[[ $port =~ ^[0-9]+$ ]] && [ "$port" -ge 1 ] && [ "$port" -le 65535 ] || fail "--port $port is no port" "1 to 65535"
[ -z "$certificate$key" ] || openssl pkey -in "$key" -noout 2>/dev/null && openssl x509 -in "$certificate" -noout ||
  fail "certificate and key cannot be read" "--certificate FILE --key FILE, both in PEM"

packages=()
for pair in git:git make:make ip:iproute2 iptables:iptables openssl:openssl curl:curl setpriv:util-linux; do
  command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
ldconfig -p | grep -q 'libpam\.so' || packages+=(libpam0g)
if [ ${#packages[@]} -gt 0 ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

umask 022
echo "The environment, /opt/workshop: once for everybody" >&2
git config --system --get-all safe.directory | grep -qx /opt/workshop || git config --system --add safe.directory /opt/workshop
source=$(git -C "$here" rev-parse --show-toplevel)
[ -d /opt/workshop ] || git clone --quiet --no-hardlinks "$source" /opt/workshop
git -C /opt/workshop fetch --quiet "$source" HEAD && git -C /opt/workshop reset --quiet --hard FETCH_HEAD
[ -z "$repository" ] || git -C /opt/workshop remote set-url origin "$repository"
export PATH=/opt/workshop/.venv/bin:$PATH
make --no-print-directory -C /opt/workshop .venv/room

umask 077
mkdir -p /etc/workshop-room /var/lib/workshop-room && cd /etc/workshop-room
getent group workshop-room >/dev/null || groupadd workshop-room
secret() { [ -s "$1" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(32))' >"$1"; }
secret proxy.token
secret instructor.password
[ -z "$password" ] || printf '%s\n' "$password" >room.password
[ -n "$people" ] || [ -s room.password ] || python3 -c 'import secrets; print(secrets.token_urlsafe(9))' >room.password
if [ -n "$certificate" ]; then
  cp "$certificate" room.pem && cp "$key" room.key
elif [ ! -s room.pem ]; then
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$host" -addext "subjectAltName=DNS:$host" \
    -keyout room.key -out room.pem 2>/dev/null
fi
if [ -n "$people" ]; then
  touch passwords.txt
  for name in $(cat "$people") instructor; do
    if ! id "$name" >/dev/null 2>&1; then
      useradd --create-home --shell /bin/bash --groups workshop-room "$name" && chmod 700 "$(getent passwd "$name" | cut -d: -f6)"
      word=$(python3 -c 'import secrets; print(secrets.token_urlsafe(9))')
      echo "$name:$word" | chpasswd && printf '%s %s\n' "$name" "$word" >>passwords.txt
    fi
  done
fi
PORT=$port MEMORY=$memory PEOPLE=$([ -z "$people" ] || tr '\n' ' ' <"$people") /opt/workshop/.venv/bin/python - >room.json <<'CODE'
import json, os
print(json.dumps({"port": int(os.environ["PORT"]), "memory": os.environ["MEMORY"], "people": os.environ["PEOPLE"].split()}))
CODE

/opt/workshop/server/room/room.sh restart
until curl --silent --insecure --fail --output /dev/null "https://127.0.0.1:$port/hub/health"; do
  sleep 1
  [ $((++waited)) -lt 120 ] || fail "the hub does not answer" "see /var/lib/workshop-room/hub.log"
done
address=https://$host$([ "$port" = 443 ] || echo ":$port")
echo "The room:       $address"
echo "The instructor: $address/services/board, name instructor, the password in /etc/workshop-room/$([ -n "$people" ] && echo passwords.txt || echo instructor.password)"
echo "The others:     $([ -n "$people" ] && echo "names and passwords in /etc/workshop-room/passwords.txt" || echo "any name, the password in /etc/workshop-room/room.password")"
